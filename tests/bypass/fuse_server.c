/* fuse_server FOLDER PAYLOAD: not an attack, but what some need: a file system that answers as its server likes. Runs outside
 * the session. FOLDER/ran holds the payload; a read of FOLDER/slow is answered with an error after 8 seconds. */
#include "bypass.h"
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mount.h>
#include <time.h>

#define SLOW_S 8
#define WAITING 64

static int device;
static char *payload;
static size_t payload_size;
static struct {
    uint64_t unique;
    time_t since;
} waiting[WAITING];

static time_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

static void reply(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header head = {.len = sizeof head + size, .error = error, .unique = unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, size}};
    if (writev(device, parts, 2) < 0 && errno != ENOENT)
        perror("fuse_server: reply");
}

static struct fuse_attr attributes(uint64_t inode)
{
    struct fuse_attr attr = {.ino = inode, .nlink = 1, .blksize = 4096};
    attr.mode = inode == 1 ? S_IFDIR | 0755 : S_IFREG | 0755;
    attr.size = inode == 2 ? payload_size : 4096;
    return attr;
}

static void look_up(const struct fuse_in_header *head, const char *name)
{
    struct fuse_entry_out entry = {.generation = 1};
    entry.nodeid = strcmp(name, "ran") == 0 ? 2 : strcmp(name, "slow") == 0 ? 3 : 0;
    if (entry.nodeid == 0) {
        reply(head->unique, -ENOENT, NULL, 0);
        return;
    }
    entry.attr = attributes(entry.nodeid);
    reply(head->unique, 0, &entry, sizeof entry);
}

static void read_file(const struct fuse_in_header *head, const struct fuse_read_in *wanted)
{
    if (head->nodeid == 3) {
        for (int i = 0; i < WAITING; i++)
            if (waiting[i].unique == 0) {
                waiting[i].unique = head->unique;
                waiting[i].since = now();
                return;
            }
        reply(head->unique, -EIO, NULL, 0);
        return;
    }
    size_t left = wanted->offset < payload_size ? payload_size - wanted->offset : 0;
    reply(head->unique, 0, payload + wanted->offset, left < wanted->size ? left : wanted->size);
}

static void serve(char *request)
{
    struct fuse_in_header *head = (struct fuse_in_header *)request;
    void *body = head + 1;
    switch (head->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 65536, .max_background = 16};
        reply(head->unique, 0, &init, sizeof init);
        break;
    }
    case FUSE_LOOKUP:
        look_up(head, body);
        break;
    case FUSE_GETATTR: {
        struct fuse_attr_out attr = {.attr = attributes(head->nodeid)};
        reply(head->unique, 0, &attr, sizeof attr);
        break;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        struct fuse_open_out open = {.fh = head->nodeid};
        reply(head->unique, 0, &open, sizeof open);
        break;
    }
    case FUSE_READ:
        read_file(head, body);
        break;
    case FUSE_READDIR:
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        reply(head->unique, 0, NULL, 0);
        break;
    case FUSE_STATFS: {
        struct fuse_statfs_out of = {.st = {.bsize = 4096, .namelen = 255}};
        reply(head->unique, 0, &of, sizeof of);
        break;
    }
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        break;
    default:
        reply(head->unique, -ENOSYS, NULL, 0);
    }
}

int main(int argc, char **argv)
{
    static char request[1 << 17];
    char options[128];
    struct stat about;
    if (argc < 3)
        return 64;
    int file = step(open(argv[2], O_RDONLY | O_CLOEXEC), "open");
    step(fstat(file, &about), "fstat");
    payload_size = about.st_size;
    payload = malloc(payload_size);
    if (payload == NULL || read(file, payload, payload_size) != (ssize_t)payload_size)
        return 66;
    device = step(open("/dev/fuse", O_RDWR | O_CLOEXEC), "open /dev/fuse");
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    step(mount("guard-test", argv[1], "fuse", 0, options), "mount");
    say("mounted");
    for (;;) {
        struct pollfd ready = {device, POLLIN, 0};
        poll(&ready, 1, 200);
        for (int i = 0; i < WAITING; i++)
            if (waiting[i].unique != 0 && now() - waiting[i].since >= SLOW_S) {
                reply(waiting[i].unique, -EIO, NULL, 0);
                waiting[i].unique = 0;
            }
        if (!(ready.revents & POLLIN))
            continue;
        ssize_t count = read(device, request, sizeof request);
        if (count < 0 && errno != EINTR && errno != ENOENT && errno != EAGAIN)
            return errno == ENODEV ? 0 : 70;
        if (count > 0)
            serve(request);
    }
}
