/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the points of daxprobe share. A point is a function that returns when the behaviour
 * holds and calls CHECK() or fail() when it does not. It runs in a process of its own, with
 * its own empty directories, under an alarm; the runner (daxprobe.c) removes whatever it left.
 */
#ifndef DAXPROBE_H
#define DAXPROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What older C libraries do not have yet. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x00200000
#endif

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define __unused __attribute__((unused))
#define __noreturn __attribute__((noreturn))
#define __printf(fmt, args) __attribute__((format(printf, fmt, args)))

/* One prototype per line of points.def: `daxprobe --list` can not name what does not exist. */
#define POINT(group, name, needs, memory, text) void point_##name(void);
#include "points.def"
#undef POINT

/* Set by the runner before it starts a point. */
extern size_t page;		/* bytes in a page */
extern const char *point_dir;	/* the point's directory on the file system under test */
extern const char *plain_dir;	/* the same on the file system without DAX (needs NODAX, HUGE) */

/* Verdicts: the reason goes to the runner, which prints it as a TAP diagnostic. */
extern int reason_fd;
void fail(const char *fmt, ...) __noreturn __printf(1, 2);

#define CHECK(cond, ...)			\
	do {					\
		if (!(cond))			\
			fail(__VA_ARGS__);	\
	} while (0)

/* A call that has to fail, and how: ret is -1 and errno the wanted one. */
#define CHECK_ERRNO(call, wanted) check_errno((long)(call), wanted, #call)
void check_errno(long ret, int wanted, const char *call);

/* Files: whatever goes wrong here is a failure of the point. */
const char *in_dir(const char *dir, const char *name);
int create_in(const char *dir, const char *name, int flags);
int create(const char *name);				/* empty */
int create_hole(const char *name, off_t size);		/* no block behind it */
int create_filled(const char *name, size_t size, unsigned int seed);
void put(int fd, const void *buf, size_t len, off_t off);	/* pwrite, all of it */
void get(int fd, void *buf, size_t len, off_t off);		/* pread, all of it */
void resize(int fd, off_t size);
off_t file_size(int fd);
blkcnt_t blocks_of(int fd);				/* of 512 bytes */
bool file_is_dax(int fd);
void copy_file(int from, int to);

/* Memory */
uint8_t *map(int fd, size_t len, int prot, int flags, off_t off);
uint8_t *map_shared(int fd, size_t len);		/* read-write, from offset 0 */
uint8_t *map_private(int fd, size_t len);
uint8_t *reserve(size_t len, size_t align);		/* address space for MAP_FIXED */
void *aligned_buffer(size_t len);			/* ordinary memory, page-aligned */

/* Of the file `name` that the point has made */
uint8_t *map_again(const char *name, size_t len, int flags);
void verify_named(const char *name, size_t len, unsigned int seed, size_t off, const char *what);
/* Pages of a file "dax", mapped shared, each of them touched and with seed 2. */
uint8_t *touched(size_t pages);
/* "direct" on the disk file system without DAX, open with O_DIRECT. */
int direct_file(size_t len, unsigned int seed);

/*
 * Patterns: the byte at offset `off` depends on the seed and on the offset, so that a page that
 * stands in the wrong place is noticed as well as a stale one.
 */
uint8_t pattern(unsigned int seed, size_t off);
void fill(void *buf, size_t len, unsigned int seed, size_t off);
void verify(const void *buf, size_t len, unsigned int seed, size_t off, const char *what);
void verify_zero(const void *buf, size_t len, const char *what);
void verify_file(int fd, size_t len, unsigned int seed, size_t off, const char *what);
void verify_file_zero(int fd, size_t len, const char *what);
void verify_same(const char *name, const char *reference, const char *complaint);

/* The signal that one load or one store gets, 0 for none. */
int signal_of_load(const volatile uint8_t *p);
int signal_of_store(volatile uint8_t *p);
void check_signal(int got, int wanted, const char *what);

long minor_faults(void);
time_t now(void);				/* monotonic, in seconds */

/* Children of a point: fail() works in them; join() fails the point when they did. */
pid_t start(void (*fn)(void *arg), void *arg);
void join(pid_t pid);

/* Whether the child has ended, or does so in this time; join() is still to come. */
bool ends_within(pid_t pid, unsigned int limit_ms);

/* A child that sits and waits, with the same mappings; the second one stopped, to be traced. */
pid_t victim(void);
pid_t traced_victim(void);
ssize_t vm_copy(pid_t pid, void *local, void *remote, size_t len, bool write);
long peek(pid_t pid, void *address);			/* errno tells whether it is valid */

/* A copy of this program in point_dir; its path is good for the next few calls of in_dir(). */
const char *copy_myself(const char *name);
/*
 * Starts `program`, a copy of this one, as helper `name` (daxprobe.c has the list): it has
 * nothing of this process but its descriptors and these numbers.
 */
pid_t start_helper(const char *program, const char *name, int count, const long *numbers);
int helper_victim(const long *numbers);			/* remote.c */
int helper_breakpoint(const long *numbers);		/* remote.c */
int helper_crash(const long *numbers);			/* core.c */
int helper_lock(const long *numbers);			/* locks.c */
int helper_futex(const long *numbers);			/* locks.c */

long futex(uint32_t *word, int op, uint32_t value);
uint64_t proc_entry(const char *path, uint64_t index);	/* 64 bits of /proc/kpageflags and such */
bool kernel_is_at_least(unsigned int major, unsigned int minor);

/* A baton between the point and one child: whoever holds it may go on. */
struct baton {
	int to_child[2];
	int to_parent[2];
};

void baton_make(struct baton *b);
void baton_to_child(struct baton *b);
void baton_to_parent(struct baton *b);
void baton_await_child(struct baton *b);	/* called by the parent */
void baton_await_parent(struct baton *b);	/* called by the child */

/* exec.c: what the copy of this program on the DAX mount does. */
int selftest(int token);

/* exec.c: instructions of a function that returns n. */
size_t make_code(uint8_t *code, uint8_t n);
int call_code(const uint8_t *code);

/* aio.c: asynchronous input and output by their system calls. */
struct aio;
struct aio *aio_open(void);
void aio_submit(struct aio *aio, bool write, int fd, void *buf, size_t len, off_t off);
void aio_await(struct aio *aio, size_t len);		/* one of them, of that many bytes */

/* pins.c: pages that stay in use for some seconds, for tests that look at what waits for them. */
int hold_pages(const char *path, unsigned int seconds);
int aio_into(const char *path, const char *device, bool stay);

/* records.c: the subcommands for power-cut tests, and their checker. */
struct record_report {
	uint32_t highest;	/* last sequence number whose record is whole */
	uint32_t valid;		/* whole records */
	uint32_t torn;		/* neither whole nor never written */
	uint32_t missing;	/* not whole, below the highest */
	uint32_t first_bad;	/* first sequence number that is not whole */
};

enum record_sync { BY_MSYNC, BY_FSYNC, BY_OVERWRITE, BY_RENAME };

int records_write(const char *path, uint32_t count, enum record_sync how, bool acknowledge);
void records_do_not_sync(void);
int records_check(const char *path, struct record_report *report);
size_t record_size(void);

/* soak.c: load that checks itself, for some seconds. */
int soak_file(const char *path, unsigned int seconds, unsigned int seed);
int soak_tree(const char *dir, unsigned int seconds, unsigned int seed);

/* pinsoak.c: the same for pages in use, by several processes. */
int soak_pins(const char *dir, const char *plain, unsigned int seconds, unsigned int seed);

#endif
