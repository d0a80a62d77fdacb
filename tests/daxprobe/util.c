// SPDX-License-Identifier: GPL-2.0-only
/* What the points are made of: verdicts, files, memory, patterns, caught signals, children. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daxprobe.h"

size_t page;
const char *point_dir;
const char *plain_dir;
int reason_fd = STDERR_FILENO;

void fail(const char *fmt, ...)
{
	char text[512];
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text) - 1, fmt, args);
	va_end(args);
	if (len > (int)sizeof(text) - 2)
		len = sizeof(text) - 2;
	text[len++] = '\n';
	if (write(reason_fd, text, len) != len)
		_exit(3);
	_exit(1);
}

void check_errno(long ret, int wanted, const char *call)
{
	int got = errno;

	if (ret != -1)
		fail("%s succeeded (%ld), expected: %s", call, ret, strerror(wanted));
	if (got != wanted)
		fail("%s: %s (%d), expected: %s (%d)", call, strerror(got), got,
		     strerror(wanted), wanted);
}

/* Returns one of four buffers in turn: enough for every call that takes two paths. */
const char *in_dir(const char *dir, const char *name)
{
	static __thread char paths[4][512];
	static __thread unsigned int turn;
	char *path = paths[turn++ % ARRAY_SIZE(paths)];
	int len;

	CHECK(dir, "no directory given for %s", name);
	len = snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	CHECK(len < (int)sizeof(paths[0]), "%s: the path is too long", dir);
	return path;
}

int create_in(const char *dir, const char *name, int flags)
{
	const char *path = in_dir(dir, name);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0700);

	CHECK(fd >= 0, "cannot create %s%s: %m", path, flags & O_DIRECT ? " with O_DIRECT" : "");
	return fd;
}

int create(const char *name)
{
	return create_in(point_dir, name, 0);
}

int create_hole(const char *name, off_t size)
{
	int fd = create(name);

	resize(fd, size);
	return fd;
}

int create_filled(const char *name, size_t size, unsigned int seed)
{
	int fd = create(name);
	uint8_t *data = malloc(size);

	CHECK(data, "no memory for %zu bytes", size);
	fill(data, size, seed, 0);
	put(fd, data, size, 0);
	free(data);
	return fd;
}

void put(int fd, const void *buf, size_t len, off_t off)
{
	ssize_t n = pwrite(fd, buf, len, off);

	CHECK(n >= 0, "pwrite of %zu bytes at %lld: %m", len, (long long)off);
	CHECK((size_t)n == len, "pwrite at %lld wrote %zd of %zu bytes", (long long)off, n, len);
}

void get(int fd, void *buf, size_t len, off_t off)
{
	ssize_t n = pread(fd, buf, len, off);

	CHECK(n >= 0, "pread of %zu bytes at %lld: %m", len, (long long)off);
	CHECK((size_t)n == len, "pread at %lld read %zd of %zu bytes", (long long)off, n, len);
}

void resize(int fd, off_t size)
{
	CHECK(!ftruncate(fd, size), "ftruncate to %lld: %m", (long long)size);
}

off_t file_size(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st), "fstat: %m");
	return st.st_size;
}

blkcnt_t blocks_of(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st), "fstat: %m");
	return st.st_blocks;
}

bool file_is_dax(int fd)
{
	struct statx st;

	CHECK(!statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st), "statx: %m");
	CHECK(st.stx_attributes_mask & STATX_ATTR_DAX, "statx does not know STATX_ATTR_DAX here");
	return st.stx_attributes & STATX_ATTR_DAX;
}

void copy_file(int from, int to)
{
	static char buf[65536];
	off_t off = 0;
	ssize_t n;

	while ((n = pread(from, buf, sizeof(buf), off)) > 0) {
		put(to, buf, n, off);
		off += n;
	}
	CHECK(!n, "pread at %lld: %m", (long long)off);
}

uint8_t *map(int fd, size_t len, int prot, int flags, off_t off)
{
	uint8_t *p = mmap(NULL, len, prot, flags, fd, off);

	CHECK(p != MAP_FAILED, "mmap of %zu bytes at %lld: %m", len, (long long)off);
	return p;
}

uint8_t *map_shared(int fd, size_t len)
{
	return map(fd, len, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
}

uint8_t *map_private(int fd, size_t len)
{
	return map(fd, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
}

uint8_t *reserve(size_t len, size_t align)
{
	uint8_t *p = map(-1, len + align, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, 0);

	return p + (align - (uintptr_t)p % align) % align;
}

void *aligned_buffer(size_t len)
{
	return map(-1, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
}

uint8_t pattern(unsigned int seed, size_t off)
{
	return off + (off >> 8) * 3 + (off >> 12) * 101 + seed * 37 + 1;
}

void fill(void *buf, size_t len, unsigned int seed, size_t off)
{
	uint8_t *p = buf;
	size_t i;

	for (i = 0; i < len; i++)
		p[i] = pattern(seed, off + i);
}

void verify(const void *buf, size_t len, unsigned int seed, size_t off, const char *what)
{
	const uint8_t *p = buf;
	size_t i;

	for (i = 0; i < len; i++)
		CHECK(p[i] == pattern(seed, off + i),
		      "%s: byte %zu of %zu is 0x%02x, expected 0x%02x", what, i, len, p[i],
		      pattern(seed, off + i));
}

void verify_zero(const void *buf, size_t len, const char *what)
{
	const uint8_t *p = buf;
	size_t i;

	for (i = 0; i < len; i++)
		CHECK(!p[i], "%s: byte %zu of %zu is 0x%02x, expected 0", what, i, len, p[i]);
}

void verify_file(int fd, size_t len, unsigned int seed, size_t off, const char *what)
{
	uint8_t *buf = malloc(len);

	CHECK(buf, "no memory for %zu bytes", len);
	get(fd, buf, len, off);
	verify(buf, len, seed, off, what);
	free(buf);
}

void verify_file_zero(int fd, size_t len, const char *what)
{
	uint8_t *buf = malloc(len);

	CHECK(buf, "no memory for %zu bytes", len);
	get(fd, buf, len, 0);
	verify_zero(buf, len, what);
	free(buf);
}

static sigjmp_buf after_signal;

static void jump_back(int sig)
{
	siglongjmp(after_signal, sig);
}

static int signal_of(const volatile uint8_t *load, volatile uint8_t *store)
{
	const struct sigaction catch = { .sa_handler = jump_back };
	struct sigaction old_bus, old_segv;
	int sig;

	sigaction(SIGBUS, &catch, &old_bus);
	sigaction(SIGSEGV, &catch, &old_segv);
	sig = sigsetjmp(after_signal, 1);
	if (!sig) {
		if (load)
			(void)*load;
		if (store)
			*store = 0x5a;
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return sig;
}

int signal_of_load(const volatile uint8_t *p)
{
	return signal_of(p, NULL);
}

int signal_of_store(volatile uint8_t *p)
{
	return signal_of(NULL, p);
}

void check_signal(int got, int wanted, const char *what)
{
	CHECK(got == wanted, "%s: %s, expected: %s", what, got ? strsignal(got) : "no signal",
	      wanted ? strsignal(wanted) : "no signal");
}

long minor_faults(void)
{
	struct rusage usage;

	CHECK(!getrusage(RUSAGE_SELF, &usage), "getrusage: %m");
	return usage.ru_minflt;
}

time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

pid_t start(void (*fn)(void *arg), void *arg)
{
	pid_t pid = fork();

	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		fn(arg);
		_exit(0);
	}
	return pid;
}

void join(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %m");
	CHECK(!WIFSIGNALED(status), "a child died: %s", strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status))
		_exit(1);	/* the child has given its reason */
}

void baton_make(struct baton *b)
{
	CHECK(!pipe(b->to_child) && !pipe(b->to_parent), "pipe: %m");
}

static void baton_send(int fd)
{
	CHECK(write(fd, "", 1) == 1, "write to the other process: %m");
}

static void baton_wait(int fd)
{
	char c;

	CHECK(read(fd, &c, 1) == 1, "the other process went away");
}

void baton_to_child(struct baton *b)
{
	baton_send(b->to_child[1]);
}

void baton_to_parent(struct baton *b)
{
	baton_send(b->to_parent[1]);
}

void baton_await_child(struct baton *b)
{
	baton_wait(b->to_parent[0]);
}

void baton_await_parent(struct baton *b)
{
	baton_wait(b->to_child[0]);
}
