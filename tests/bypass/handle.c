/* handle HOW: files that come by another way than a name.
 * HOW: `by_handle` (open_by_handle_at), `received SOCKET` (a descriptor sent by a process outside), `outside PID` (through
 * the root folder of a process outside), `outside_fd PID` (an O_PATH descriptor of that root). */
#include "bypass.h"
#include <sys/socket.h>
#include <sys/un.h>

static int file = -1;
static char *path = "";
static char text[256];

static void run(void)
{
    if (*path)
        execve(path, argv_ran, env_none);
    else
        exec_at(file, "", argv_ran, env_none, AT_EMPTY_PATH);
}

static int received(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, name, sizeof address.sun_path - 1);
    int from = step(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
    step(connect(from, (struct sockaddr *)&address, sizeof address), "connect");
    char byte, room[CMSG_SPACE(sizeof(int))];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    step(recvmsg(from, &message, 0), "recvmsg");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head == NULL)
        result("nothing received");
    int fd;
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

int main(int argc, char **argv)
{
    if (is(argv, "by_handle")) {
        struct {
            struct file_handle head;
            char room[MAX_HANDLE_SZ];
        } handle = {.head.handle_bytes = MAX_HANDLE_SZ};
        int mount, root = step(open("/", O_RDONLY | O_DIRECTORY), "open");
        step(name_to_handle_at(AT_FDCWD, RAN, &handle.head, &mount, 0), "name_to_handle_at");
        file = step(open_by_handle_at(root, &handle.head, O_RDONLY), "open_by_handle_at");
    } else if (argc > 2 && is(argv, "received")) {
        file = received(argv[2]);
    } else if (argc > 2 && is(argv, "outside")) {
        snprintf(text, sizeof text, "/proc/%s/root" RAN, argv[2]);
        path = text;
    } else if (argc > 2 && is(argv, "outside_fd")) {
        snprintf(text, sizeof text, "/proc/%s/root" RAN, argv[2]);
        file = step(open(text, O_PATH), "open");
    }
    attempt(run);
}
