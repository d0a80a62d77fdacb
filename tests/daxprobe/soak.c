// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load that checks itself, for hours: random operations on one file, against a copy of what must be in
 * it (as fsx does), and random operations on a tree of names (as fsstress does; there, fsck is the check).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "daxprobe.h"

#define MOST_BYTES (512 * 1024)
#define MOST_AT_ONCE (64 * 1024)
/* What is printed of the operations before a difference */
#define REMEMBERED 12

static uint32_t state;

/* xorshift32: the same on each machine */
static uint32_t chance(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state % below;
}

static void seed_chance(unsigned int seed)
{
	int i;

	state = seed * 2654435761u | 1;
	for (i = 0; i < 8; i++)
		chance(2);
}

/* Whether the file system said that it has no such operation: then there is none to test. */
static bool unsupported(void)
{
	return errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOTTY;
}

/* One file ---------------------------------------------------------------------------------- */

static struct {
	char path[256];
	int fd;
	uint8_t *mapped;		/* MOST_BYTES, however long the file is */
	uint8_t model[MOST_BYTES];
	uint8_t buf[MOST_BYTES];
	size_t size;			/* of the file */
	unsigned long count;
	unsigned int seed;
	char past[REMEMBERED][80];
} file;

static void remember(const char *what, size_t off, size_t len)
{
	snprintf(file.past[file.count % REMEMBERED], sizeof(file.past[0]),
		 "%lu: %s at %zu, %zu bytes, size %zu", file.count, what, off, len, file.size);
}

static void file_failed(const char *fmt, ...) __noreturn __printf(1, 2);
static void file_failed(const char *fmt, ...)
{
	const unsigned long first = file.count >= REMEMBERED ? file.count - REMEMBERED + 1 : 1;
	unsigned long i;
	va_list args;

	for (i = first; i <= file.count; i++)
		fprintf(stderr, "# %s\n", file.past[i % REMEMBERED]);
	fprintf(stderr, "daxprobe: %s, seed %u: ", file.path, file.seed);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void compare(const uint8_t *seen, size_t off, size_t len, const char *how)
{
	size_t i;

	if (!memcmp(seen, file.model + off, len))
		return;
	for (i = 0; seen[i] == file.model[off + i]; i++)
		;
	file_failed("byte %zu is 0x%02x by %s, and must be 0x%02x", off + i, seen[i], how,
		    file.model[off + i]);
}

static void open_and_map(void)
{
	file.fd = open(file.path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (file.fd < 0)
		file_failed("open: %m");
	file.mapped = mmap(NULL, MOST_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0);
	if (file.mapped == MAP_FAILED)
		file_failed("mmap: %m");
}

static void unmap_and_close(void)
{
	munmap(file.mapped, MOST_BYTES);
	close(file.fd);
}

/* A range that may lie behind the end, but not behind MOST_BYTES. */
static void anywhere(size_t *off, size_t *len)
{
	*off = chance(MOST_BYTES - 1);
	*len = 1 + chance(MOST_AT_ONCE);
	if (*len > MOST_BYTES - *off)
		*len = MOST_BYTES - *off;
}

static bool inside(size_t *off, size_t *len)
{
	if (!file.size)
		return false;
	*off = chance(file.size);
	*len = 1 + chance(MOST_AT_ONCE);
	if (*len > file.size - *off)
		*len = file.size - *off;
	return true;
}

static void new_bytes(size_t off, size_t len)
{
	if (off + len > file.size)
		file.size = off + len;
	fill(file.model + off, len, file.count, off);
}

static void do_write(void)
{
	size_t off, len;

	anywhere(&off, &len);
	remember("write", off, len);
	new_bytes(off, len);
	if (pwrite(file.fd, file.model + off, len, off) != (ssize_t)len)
		file_failed("write: %m");
}

static void do_store(void)
{
	size_t off, len;

	if (!inside(&off, &len))
		return;
	remember("store", off, len);
	new_bytes(off, len);
	memcpy(file.mapped + off, file.model + off, len);
}

static void do_read(void)
{
	size_t off, len;

	if (!inside(&off, &len))
		return;
	remember("read", off, len);
	if (pread(file.fd, file.buf, len, off) != (ssize_t)len)
		file_failed("read: %m");
	compare(file.buf, off, len, "read");
}

static void do_load(void)
{
	size_t off, len;

	if (!inside(&off, &len))
		return;
	remember("load", off, len);
	compare(file.mapped + off, off, len, "load");
}

static void do_truncate(void)
{
	const size_t size = chance(4) ? chance(MOST_BYTES) : 0;

	remember("truncate", size, 0);
	if (ftruncate(file.fd, size))
		file_failed("truncate: %m");
	/* What was cut off reads as zeros when the file grows again. */
	if (size < file.size)
		memset(file.model + size, 0, file.size - size);
	file.size = size;
}

static void do_fallocate(void)
{
	static const struct {
		const char *name;
		int mode;
		bool zeros;
		bool grows;
	} kinds[] = {
		{ "allocate", 0, false, true },
		{ "allocate, size kept", FALLOC_FL_KEEP_SIZE, false, false },
		{ "punch", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, true, false },
		{ "zero", FALLOC_FL_ZERO_RANGE, true, true },
		{ "zero, size kept", FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, true, false },
	};
	const uint32_t kind = chance(ARRAY_SIZE(kinds));
	size_t off, len, end;

	anywhere(&off, &len);
	remember(kinds[kind].name, off, len);
	if (fallocate(file.fd, kinds[kind].mode, off, len)) {
		if (unsupported())
			return;
		file_failed("fallocate: %m");
	}
	end = off + len;
	if (kinds[kind].grows && end > file.size)
		file.size = end;
	if (end > file.size)
		end = file.size;
	if (kinds[kind].zeros && end > off)
		memset(file.model + off, 0, end - off);
}

/* Whole blocks out of the middle, or into it */
static void do_shift(void)
{
	const bool insert = chance(2);
	const size_t len = page * (1 + chance(8));
	size_t off;

	if (file.size <= len + page || (insert && file.size + len > MOST_BYTES))
		return;
	off = chance((file.size - len) / page) * page;
	if (!insert && off + len >= file.size)
		return;
	remember(insert ? "insert" : "collapse", off, len);
	if (fallocate(file.fd, insert ? FALLOC_FL_INSERT_RANGE : FALLOC_FL_COLLAPSE_RANGE, off,
		      len)) {
		if (unsupported())
			return;
		file_failed("%s: %m", insert ? "insert" : "collapse");
	}
	if (insert) {
		memmove(file.model + off + len, file.model + off, file.size - off);
		memset(file.model + off, 0, len);
		file.size += len;
	} else {
		memmove(file.model + off, file.model + off + len, file.size - off - len);
		file.size -= len;
		memset(file.model + file.size, 0, len);
	}
}

static void do_sync(void)
{
	remember("sync", 0, file.size);
	if (chance(2) ? fsync(file.fd) : msync(file.mapped, file.size, MS_SYNC))
		file_failed("sync: %m");
}

static void do_reopen(void)
{
	remember("reopen", 0, file.size);
	unmap_and_close();
	open_and_map();
}

static void do_dontneed(void)
{
	remember("madvise", 0, file.size);
	if (madvise(file.mapped, MOST_BYTES, MADV_DONTNEED))
		file_failed("madvise: %m");
}

/* A child sees what its parent sees, and its private stores stay its own. */
static void do_fork(void)
{
	uint8_t *mine;
	int status;
	pid_t pid;

	remember("fork", 0, file.size);
	pid = fork();
	if (pid < 0)
		file_failed("fork: %m");
	if (!pid) {
		compare(file.mapped, 0, file.size, "load in a child");
		mine = mmap(NULL, MOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.fd, 0);
		if (mine == MAP_FAILED)
			file_failed("mmap in a child: %m");
		compare(mine, 0, file.size, "load from a private mapping");
		memset(mine, 0x5a, file.size);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		file_failed("the child ended with status 0x%x", status);
}

int soak_file(const char *path, unsigned int seconds, unsigned int seed)
{
	static void (*const operations[])(void) = {
		do_write, do_write, do_store, do_store, do_store, do_read, do_read, do_load, do_load,
		do_truncate, do_fallocate, do_fallocate, do_shift, do_sync, do_reopen, do_dontneed,
		do_fork,
	};
	const time_t end = now() + seconds;

	if (snprintf(file.path, sizeof(file.path), "%s", path) >= (int)sizeof(file.path)) {
		fprintf(stderr, "daxprobe: %s: the name is too long\n", path);
		return 2;
	}
	file.seed = seed;
	seed_chance(seed);
	unlink(path);
	open_and_map();
	while (now() < end) {
		file.count++;
		remember("nothing", 0, 0);
		operations[chance(ARRAY_SIZE(operations))]();
		if (file_size(file.fd) != (off_t)file.size)
			file_failed("the size is %lld, and must be %zu",
				    (long long)file_size(file.fd), file.size);
	}
	compare(file.mapped, 0, file.size, "load at the end");
	unmap_and_close();
	printf("%s: %lu operations\n", path, file.count);
	return 0;
}

/* A tree of names --------------------------------------------------------------------------- */

#define NAMES 24
/* Each file stops to grow there. */
#define TREE_BYTES 8192
/*
 * After so many operations the tree is emptied. By then it has most of its names; and it would grow without
 * end, since a full directory that was moved into another one is out of reach of the names.
 */
#define TREE_OPERATIONS 2000

static const char *some_name(void)
{
	static char names[4][32];
	static unsigned int turn;
	char *name = names[turn++ % ARRAY_SIZE(names)];
	int len = snprintf(name, sizeof(names[0]), "n%u", chance(NAMES));

	if (chance(2))
		snprintf(name + len, sizeof(names[0]) - len, "/n%u", chance(NAMES));
	return name;
}

static int tree_write(const char *name)
{
	static char data[5000];
	const size_t len = 1 + chance(sizeof(data) - 1);
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | (chance(2) ? O_APPEND : O_TRUNC), 0600);
	int ret = fd;

	if (fd < 0)
		return -1;
	if (lseek(fd, 0, SEEK_END) < TREE_BYTES)
		ret = write(fd, data, len);
	if (ret >= 0 && !chance(8))
		ret = fsync(fd);
	close(fd);
	return ret;
}

static int tree_list(const char *name)
{
	DIR *dir = opendir(name);

	if (!dir)
		return -1;
	while (readdir(dir))
		;
	return closedir(dir);
}

static int tree_step(void)
{
	const char *name = some_name();
	char value[300];

	switch (chance(14)) {
	case 0: case 1: case 2: case 3:
		return tree_write(name);
	case 4: case 5:
		return mkdir(name, 0700);
	case 6:
		return rmdir(name);
	case 7:
		return unlink(name);
	case 8: case 9:
		return rename(name, some_name());
	case 10:
		return link(name, some_name());
	case 11:
		return symlink(name, some_name());
	case 12:
		memset(value, 'v', sizeof(value));
		return chance(3) ? setxattr(name, "user.t", value, chance(sizeof(value)), 0) :
				   removexattr(name, "user.t");
	default:
		return chance(2) ? tree_list(name) : truncate(name, chance(TREE_BYTES));
	}
}

/* What a name that is there, is not there, or is of another kind may answer */
static bool expected(int error)
{
	switch (error) {
	case ENOENT: case EEXIST: case ENOTDIR: case EISDIR: case ENOTEMPTY: case ELOOP:
	case EINVAL: case ENODATA: case EPERM: case EBUSY: case EOPNOTSUPP: case EMLINK:
		return true;
	default:
		return false;
	}
}

static int remove_below(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	return at->level && remove(path) ? -1 : 0;
}

int soak_tree(const char *dir, unsigned int seconds, unsigned int seed)
{
	const time_t end = now() + seconds;
	unsigned long count = 0;

	if (chdir(dir)) {
		fprintf(stderr, "daxprobe: %s: %s\n", dir, strerror(errno));
		return 2;
	}
	seed_chance(seed);
	while (now() < end) {
		const bool well = ++count % TREE_OPERATIONS ?
				  tree_step() >= 0 || expected(errno) :
				  !nftw(".", remove_below, 8, FTW_DEPTH | FTW_PHYS);

		if (!well) {
			fprintf(stderr, "daxprobe: %s, seed %u, operation %lu: %s\n", dir, seed,
				count, strerror(errno));
			return 1;
		}
	}
	printf("%s: %lu operations\n", dir, count);
	return 0;
}
