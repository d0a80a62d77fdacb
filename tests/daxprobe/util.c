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
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daxprobe.h"

#ifndef SYS_futex
#define SYS_futex SYS_futex_time64
#endif
/* The most numbers that a helper is given */
#define MOST_NUMBERS 8

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

/* A file under test of `pages` pages, each mapped and dirty. */
uint8_t *touched(size_t pages)
{
	int fd = create_filled("dax", pages * page, 1);
	uint8_t *p = map_shared(fd, pages * page);

	fill(p, pages * page, 2, 0);
	return p;
}

/* A file on an ordinary disk file system, open with O_DIRECT, with `seed` in it. */
int direct_file(size_t len, unsigned int seed)
{
	int fd = create_in(plain_dir, "direct", O_DIRECT);
	uint8_t *data = aligned_buffer(len);

	fill(data, len, seed, 0);
	put(fd, data, len, 0);
	memset(data, 0, len);
	get(fd, data, len, 0);
	verify(data, len, seed, 0, "O_DIRECT with ordinary memory");
	return fd;
}

static void sit_and_wait(void *arg)
{
	(void)arg;
	for (;;)
		pause();
}

/* A child with the same mappings, to be looked into; killed with the point at the latest. */
pid_t victim(void)
{
	return start(sit_and_wait, NULL);
}

ssize_t vm_copy(pid_t pid, void *local, void *remote, size_t len, bool write)
{
	struct iovec here = { local, len }, there = { remote, len };

	return write ? process_vm_writev(pid, &here, 1, &there, 1, 0) :
		process_vm_readv(pid, &here, 1, &there, 1, 0);
}

/* A stopped child whose memory can be peeked and poked. */
pid_t traced_victim(void)
{
	int status;
	pid_t pid = victim();

	CHECK(!ptrace(PTRACE_ATTACH, pid, NULL, NULL), "PTRACE_ATTACH: %m");
	CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status), "the child did not stop");
	return pid;
}

/* glibc's wrapper returns the word and may return -1 for it: errno tells. */
long peek(pid_t pid, void *address)
{
	errno = 0;
	return ptrace(PTRACE_PEEKDATA, pid, address, NULL);
}

long futex(uint32_t *word, int op, uint32_t value)
{
	return syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

pid_t start_helper(const char *program, const char *name, int count, const long *numbers)
{
	static char words[MOST_NUMBERS][16];
	const char *argv[MOST_NUMBERS + 4] = { "daxprobe", "--helper", name };
	pid_t pid;
	int i;

	CHECK(count <= MOST_NUMBERS, "%s has %d arguments", name, count);
	for (i = 0; i < count; i++) {
		snprintf(words[i], sizeof(words[i]), "%ld", numbers[i]);
		argv[i + 3] = words[i];
	}
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execv(program, (char **)argv);
		fail("exec of %s: %m", program);
	}
	return pid;
}

const char *copy_myself(const char *name)
{
	int from = open("/proc/self/exe", O_RDONLY);
	int to = create(name);

	CHECK(from >= 0, "open /proc/self/exe: %m");
	copy_file(from, to);
	CHECK(!close(from) && !close(to), "close: %m");
	return in_dir(point_dir, name);
}

uint8_t *map_again(const char *name, size_t len, int flags)
{
	int fd = open(in_dir(point_dir, name), O_RDWR | O_CLOEXEC);
	uint8_t *p;

	CHECK(fd >= 0, "open %s: %m", name);
	p = map(fd, len, PROT_READ | PROT_WRITE, flags, 0);
	close(fd);
	return p;
}

void verify_named(const char *name, size_t len, unsigned int seed, size_t off, const char *what)
{
	int fd = open(in_dir(point_dir, name), O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0, "open %s: %m", name);
	verify_file(fd, len, seed, off, what);
	close(fd);
}

/* In milliseconds */
static long long clock_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

bool ends_within(pid_t pid, unsigned int limit_ms)
{
	const long long end = clock_ms() + limit_ms;
	siginfo_t info = { };

	do {
		CHECK(!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT), "waitid: %m");
		if (info.si_pid)
			return true;
		usleep(2000);
	} while (clock_ms() < end);
	return false;
}

uint64_t proc_entry(const char *path, uint64_t index)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t entry;

	CHECK(fd >= 0, "%s: %m", path);
	get(fd, &entry, sizeof(entry), index * sizeof(entry));
	close(fd);
	return entry;
}

bool kernel_is_at_least(unsigned int major, unsigned int minor)
{
	unsigned int have_major, have_minor;
	struct utsname name;

	CHECK(!uname(&name) && sscanf(name.release, "%u.%u", &have_major, &have_minor) == 2,
	      "uname: %m");
	return have_major > major || (have_major == major && have_minor >= minor);
}

/* Two files of the point's directory, by mappings */
void verify_same(const char *name, const char *reference, const char *complaint)
{
	int a = open(in_dir(point_dir, name), O_RDONLY), b = open(in_dir(point_dir, reference), O_RDONLY);
	off_t size;

	CHECK(a >= 0 && b >= 0, "open: %m");
	size = file_size(a);
	CHECK(!memcmp(map(a, size, PROT_READ, MAP_SHARED, 0), map(b, size, PROT_READ, MAP_SHARED, 0), size),
	      "%s", complaint);
}
