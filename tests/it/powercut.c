/*
 * A disk that keeps only what was synced, as POSIX promises it and no kinder: the bytes of a file as they were at its
 * last fsync or fdatasync, the names in a folder as they were at the folder's last fsync. Loaded into the daemon by
 * LD_PRELOAD; tests/it/chaos.rs rebuilds the state directory from what is kept here after SIGKILL.
 *
 *   ICHD_DISK        the folder that lies on this disk
 *   ICHD_DISK_KEPT   where what is durable is kept: f-<ino>-<born> for a file, d-<ino>-<born> for a folder, a line each
 *   ICHD_DISK_HELD   while this file exists, syncs of instances on their way wait: a disk that hangs
 *   ICHD_DISK_FAILS  while this file exists, whatever writes fails with the error whose number is in it
 *
 * Files and folders are known by inode and time of birth, since inodes are used again.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *disk, *kept, *held, *fails;
static atomic_ulong next;

static int identity(int fd, const char *name, char *into, size_t n, int *is_folder) {
    struct statx s;
    int flags = AT_SYMLINK_NOFOLLOW | (name ? 0 : AT_EMPTY_PATH);
    if (statx(fd, name ? name : "", flags, STATX_INO | STATX_BTIME | STATX_TYPE, &s)) return -1;
    *is_folder = S_ISDIR(s.stx_mode);
    snprintf(into, n, "%c-%llu-%lld.%09u", *is_folder ? 'd' : 'f', (unsigned long long)s.stx_ino,
             (long long)s.stx_btime.tv_sec, s.stx_btime.tv_nsec);
    return 0;
}

/* Replaces what is kept in one step: SIGKILL may come at any time. */
static int keep(int fd) {
    char id[96], path[PATH_MAX], temporary[PATH_MAX], line[PATH_MAX], name[96];
    int is_folder, other;
    if (identity(fd, NULL, id, sizeof id, &is_folder)) return -1;
    snprintf(path, sizeof path, "%s/%s", kept, id);
    snprintf(temporary, sizeof temporary, "%s/t-%d-%lu", kept, getpid(), atomic_fetch_add(&next, 1));
    int to = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0) return -1;
    snprintf(line, sizeof line, "/proc/self/fd/%d", fd);
    if (is_folder) {
        DIR *folder = opendir(line);
        for (struct dirent *e; folder && (e = readdir(folder));) {
            if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
            if (identity(dirfd(folder), e->d_name, name, sizeof name, &other)) continue;
            dprintf(to, "%s %s\n", name, e->d_name);
        }
        if (folder) closedir(folder);
    } else {
        static __thread char buffer[1 << 16];
        int from = open(line, O_RDONLY | O_CLOEXEC);
        for (ssize_t n; from >= 0 && (n = read(from, buffer, sizeof buffer)) > 0;)
            if (write(to, buffer, n) != n) abort();
        if (from >= 0) close(from);
    }
    close(to);
    return rename(temporary, path);
}

/* Everything that is there at the start is durable. */
static void keep_all(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return;
    keep(fd);
    DIR *folder = opendir(path);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        char below[PATH_MAX];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(below, sizeof below, "%s/%s", path, e->d_name);
        keep_all(below);
    }
    if (folder) closedir(folder);
    close(fd);
}

__attribute__((constructor)) static void start(void) {
    kept = getenv("ICHD_DISK_KEPT");
    disk = getenv("ICHD_DISK");
    held = getenv("ICHD_DISK_HELD");
    fails = getenv("ICHD_DISK_FAILS");
    if (kept && disk) keep_all(disk);
}

/* Whether a path, or an open file, lies on the disk and the disk fails. Sets errno. */
static int fails_at(const char *path, int fd) {
    char line[64], of_fd[PATH_MAX], number[16] = "";
    if (!fails || !disk || (!path && fd < 3)) return 0;
    int from = syscall(SYS_openat, AT_FDCWD, fails, O_RDONLY | O_CLOEXEC);
    if (from < 0) return 0;
    ssize_t n = read(from, number, sizeof number - 1);
    close(from);
    if (!path) {
        snprintf(line, sizeof line, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(line, of_fd, sizeof of_fd - 1);
        of_fd[length < 0 ? 0 : length] = 0;
        path = of_fd;
    }
    if (n <= 0 || strncmp(path, disk, strlen(disk))) return 0;
    errno = atoi(number);
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int sync_of(int fd, int (*next_one)(int)) {
    char line[64], path[PATH_MAX];
    if (fails_at(NULL, fd)) return -1;
    snprintf(line, sizeof line, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(line, path, sizeof path - 1);
    if (n > 0 && held) {
        path[n] = 0;
        while (strstr(path, ".part") && access(held, F_OK) == 0) usleep(5000);
    }
    if (kept && disk && n > 0 && !strncmp(path, disk, strlen(disk))) return keep(fd);
    return next_one(fd);
}

int fsync(int fd) { return sync_of(fd, NEXT(fsync)); }
int fdatasync(int fd) { return sync_of(fd, NEXT(fdatasync)); }

static int open_of(const char *path, int flags, mode_t mode) {
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails_at(path, -1)) return -1;
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_of(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_of(path, flags, mode);
}
ssize_t write(int fd, const void *b, size_t n) { return fails_at(NULL, fd) ? -1 : NEXT(write)(fd, b, n); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) {
    return fails_at(NULL, fd) ? -1 : NEXT(pwrite64)(fd, b, n, at);
}
int ftruncate64(int fd, off64_t n) { return fails_at(NULL, fd) ? -1 : NEXT(ftruncate64)(fd, n); }
int rename(const char *from, const char *to) { return fails_at(to, -1) ? -1 : NEXT(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return fails_at(path, -1) ? -1 : NEXT(mkdir)(path, mode); }
int unlink(const char *path) { return fails_at(path, -1) ? -1 : NEXT(unlink)(path); }
