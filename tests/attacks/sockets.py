"""sockets.py WHAT…: one attempt for each WHAT, in-process; prints `WHAT ok` or `WHAT errno N`.

stream:NAME seqpacket:NAME send:NAME sendconnected:NAME   a Unix socket, NAME a path or @abstract
inside                                                    sockets of the session among themselves
serve:NAME                                                listens until its standard input ends
tcp:ADDR:PORT udp:ADDR:PORT fastopen:ADDR:PORT            an internet address (IPv6 in brackets)
bound:ADDR:PORT                                           0.0.0.0, from a socket bound to ADDR
mapped:ADDR:PORT unspec:ADDR:PORT                         ADDR as ::ffff:ADDR; a datagram to a name without a family
disconnect                                                connect with AF_UNSPEC
make:FAMILY:TYPE:PROTOCOL                                 only socket()
tls:ADDR:PORT:FOLDER                                      a TLS handshake with the client certificate in FOLDER
"""
import ctypes
import os
import socket
import ssl
import struct
import sys
import tempfile

from common import main, say

libc = ctypes.CDLL(None, use_errno=True)


def name_of(text):
    return "\0" + text[1:] if text.startswith("@") else text


def unix(kind, name, send=False, connected=False):
    with socket.socket(socket.AF_UNIX, kind) as s:
        if not send or connected:
            s.connect(name_of(name))
        if send:
            s.send(b"x") if connected else s.sendto(b"x", name_of(name))


def inside():
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        a.send(b"x")
        assert b.recv(1) == b"x"
    folder = tempfile.mkdtemp()
    for name in (folder + "/s", "@guard-attack-%d" % os.getpid()):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name_of(name))
        listener.listen()
        unix(socket.SOCK_STREAM, name)
        # From another process of the session.
        pid = os.fork()
        if pid == 0:
            try:
                unix(socket.SOCK_STREAM, name)
                os._exit(0)
            except OSError:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(folder + "/d")
    unix(socket.SOCK_DGRAM, folder + "/d", send=True)
    assert receiver.recv(1) == b"x"


def serve(name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name_of(name))
    listener.listen()
    unix(socket.SOCK_STREAM, name)
    say("serving", name)
    sys.stdin.read()


def split(rest):
    address, port = rest.rsplit(":", 1)
    address = address.strip("[]")
    return (socket.AF_INET6 if ":" in address else socket.AF_INET), address, int(port)


def internet(kind, rest):
    family, address, port = split(rest)
    if kind == "mapped":
        family, address = socket.AF_INET6, "::ffff:" + address
    datagram = kind in ("udp", "unspec")
    with socket.socket(family, socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM) as s:
        s.settimeout(5)
        if kind == "bound":
            s.bind((address, 0))
            s.connect(("0.0.0.0", port))
        elif kind == "udp":
            s.sendto(b"x", (address, port))
        elif kind == "unspec":
            name = struct.pack("!HH4s8x", 0, port, socket.inet_aton(address))
            if libc.sendto(s.fileno(), b"x", 1, 0, name, len(name)) < 0:
                raise OSError(ctypes.get_errno(), "sendto")
        elif kind == "fastopen":
            try:
                s.sendto(b"x", socket.MSG_FASTOPEN, (address, port))
            except BlockingIOError:
                pass  # On its way.
        else:
            s.connect((address, port))


def disconnect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        name = struct.pack("H14x", 0)
        if libc.connect(s.fileno(), name, len(name)) != 0:
            raise OSError(ctypes.get_errno(), "connect")


def tls(rest):
    address, port, folder = rest.rsplit(":", 2)
    context = ssl.create_default_context(cafile=folder + "/ca.pem")
    context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
    with socket.create_connection((address, int(port)), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            wrapped.getpeercert()


def attempt(what):
    kind, _, rest = what.partition(":")
    if kind == "stream":
        unix(socket.SOCK_STREAM, rest)
    elif kind == "seqpacket":
        unix(socket.SOCK_SEQPACKET, rest)
    elif kind == "send":
        unix(socket.SOCK_DGRAM, rest, send=True)
    elif kind == "sendconnected":
        unix(socket.SOCK_DGRAM, rest, send=True, connected=True)
    elif kind == "inside":
        inside()
    elif kind == "serve":
        serve(rest)
    elif kind == "disconnect":
        disconnect()
    elif kind == "make":
        socket.socket(*(int(n) for n in rest.split(":"))).close()
    elif kind == "tls":
        tls(rest)
    else:
        internet(kind, rest)


def run(args):
    for what in args:
        try:
            attempt(what)
            say(what, "ok")
        except OSError as error:
            say(what, "errno", error.errno)


main(run)
