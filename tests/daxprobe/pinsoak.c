// SPDX-License-Identifier: GPL-2.0-only
/*
 * A soak of pages in use: several processes lend pages of one file to pipes, to O_DIRECT and to each
 * other, while they truncate it, punch it, copy it privately, fork, remap and write.
 *
 * Nobody knows what another one has just cut off, so each word says where it belongs: it is 0, or it
 * names its file and its place in it. A word that a page brings from elsewhere is noticed, whoever
 * put it there. Words are stored as such, and all sizes are multiples of a sector.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

#define PROCESSES 5
/* Two pieces of 2 MiB, so that large mappings take part where there are any */
#define FILE_BYTES ((size_t)4 << 20)
#define MOST_PAGES 16
#define SECTOR ((size_t)512)
/* How long a process may take to end, when its time is over: as long as its last operation */
#define END_LIMIT_MS 20000

enum { SHARED_FILE = 1, OTHER_FILES = 16 };

/* Ways to use a page. Where a kernel refuses one, all of it is refused, and this soak shows nothing. */
enum way { DIRECT_READ, DIRECT_WRITE, PIPE, REMOTE, WAYS };
static const char *const way_names[WAYS] = { "O_DIRECT read", "O_DIRECT write", "vmsplice",
					     "process_vm_readv, _writev" };
/* With so many operations each way was taken often, and not always over pages that are gone. */
#define ENOUGH 200

static struct {
	const char *dir;
	uint8_t *mapped;	/* FILE_BYTES, however long the file is */
	int fd;
	int direct;		/* the process' own file on the disk */
	pid_t peers[PROCESSES];	/* those that were there before this one */
	int me;
	uint32_t state;
	unsigned int seed;
	unsigned long count;
	unsigned long worked[WAYS];
	const char *doing;
	/* What each process does: seen by the one that waits for them */
	const char *volatile *all_doing;
} soak;

/* xorshift32: the same on each machine */
static uint32_t chance(uint32_t below)
{
	soak.state ^= soak.state << 13;
	soak.state ^= soak.state >> 17;
	soak.state ^= soak.state << 5;
	return soak.state % below;
}

static void seed_chance(unsigned int seed)
{
	int i;

	soak.state = seed * 2654435761u | 1;
	for (i = 0; i < 8; i++)
		chance(2);
}

static void wrong(const char *what)
{
	fail("process %d, seed %u, operation %lu, %s: %s: %s", soak.me, soak.seed, soak.count,
	     soak.doing, what, strerror(errno));
}

/* Words ------------------------------------------------------------------------------------- */

static uint32_t word_at(unsigned int file, size_t off)
{
	return file << 24 | (uint32_t)(off / 4 + 1);
}

static void put_words(uint8_t *buf, size_t len, unsigned int file, size_t off)
{
	volatile uint32_t *words = (volatile uint32_t *)buf;
	size_t i;

	for (i = 0; i < len / 4; i++)
		words[i] = word_at(file, off + i * 4);
}

static void check_words(const uint8_t *buf, size_t len, unsigned int file, size_t off,
			const char *how)
{
	const volatile uint32_t *words = (const volatile uint32_t *)buf;
	uint32_t word;
	size_t i;

	for (i = 0; i < len / 4; i++) {
		word = words[i];
		if (word && word != word_at(file, off + i * 4))
			fail("process %d, seed %u, operation %lu, %s: %s of file %u at %zu is 0x%08x: file %u at %u",
			     soak.me, soak.seed, soak.count, soak.doing, how, file, off + i * 4,
			     word, word >> 24, ((word & 0xffffff) - 1) * 4);
	}
}

/* Loads and stores behind the end, as it is at that moment, get SIGBUS: then there is nothing to see. */
static sigjmp_buf behind_end;

static void caught(int sig)
{
	siglongjmp(behind_end, sig);
}

static void check_mapping(const uint8_t *p, size_t off, size_t len, const char *how)
{
	if (!sigsetjmp(behind_end, 1))
		check_words(p + off, len, SHARED_FILE, off, how);
}

/* Operations -------------------------------------------------------------------------------- */

static void anywhere(size_t *off, size_t *len)
{
	*len = (1 + chance(MOST_PAGES)) * page;
	*off = chance((FILE_BYTES - *len) / page + 1) * page;
	if (chance(2)) {	/* sectors in the middle of pages */
		*off += SECTOR * chance(page / SECTOR);
		*len -= page - SECTOR;
		if (*off + *len > FILE_BYTES)
			*off = FILE_BYTES - *len;
	}
}

/* A call that was given pages of the file may say that they are gone, or some of them. */
static void check_use(ssize_t n, size_t len, enum way way)
{
	if (n == (ssize_t)len)
		soak.worked[way]++;
	else if (n < 0 && errno != EFAULT)
		wrong(way_names[way]);
}

static void do_store(void)
{
	size_t off, len;

	anywhere(&off, &len);
	if (!sigsetjmp(behind_end, 1))
		put_words(soak.mapped + off, len, SHARED_FILE, off);
}

static void do_write(void)
{
	static uint8_t data[MOST_PAGES * 4096];
	size_t off, len;

	anywhere(&off, &len);
	put_words(data, len, SHARED_FILE, off);
	if (pwrite(soak.fd, data, len, off) != (ssize_t)len)
		wrong("write");
}

static void do_read(void)
{
	static uint8_t data[MOST_PAGES * 4096];
	size_t off, len;
	ssize_t n;

	anywhere(&off, &len);
	n = pread(soak.fd, data, len, off);
	if (n < 0)
		wrong("read");
	check_words(data, n, SHARED_FILE, off, "read");
}

static void do_load(void)
{
	size_t off, len;

	anywhere(&off, &len);
	check_mapping(soak.mapped, off, len, "load");
}

/* From the disk into the mapping, by pages that are pinned meanwhile */
static void do_direct_read(void)
{
	static uint8_t *data;
	size_t off, len;
	ssize_t n;

	if (!data)
		data = aligned_buffer(MOST_PAGES * page);
	anywhere(&off, &len);
	put_words(data, len, SHARED_FILE, off);
	if (pwrite(soak.direct, data, len, 0) != (ssize_t)len)
		wrong("O_DIRECT write of ordinary memory");
	n = pread(soak.direct, soak.mapped + off, len, 0);
	check_use(n, len, DIRECT_READ);
}

static void do_direct_write(void)
{
	static uint8_t *data;
	size_t off, len;
	ssize_t n;

	if (!data)
		data = aligned_buffer(MOST_PAGES * page);
	anywhere(&off, &len);
	n = pwrite(soak.direct, soak.mapped + off, len, 0);
	check_use(n, len, DIRECT_WRITE);
	if (n <= 0)
		return;
	len = n;
	if (pread(soak.direct, data, len, 0) != (ssize_t)len)
		wrong("O_DIRECT read into ordinary memory");
	check_words(data, len, SHARED_FILE, off, "what O_DIRECT wrote");
}

/* Some pages in a pipe for a while; a pipe with 16 places holds them all. */
static void do_lend(void)
{
	static uint8_t data[MOST_PAGES * 4096];
	size_t off, len;
	struct iovec part;
	int ends[2];
	ssize_t n;

	anywhere(&off, &len);
	part = (struct iovec){ soak.mapped + off, len };
	if (pipe2(ends, O_CLOEXEC))
		wrong("pipe");
	n = vmsplice(ends[1], &part, 1, SPLICE_F_NONBLOCK | (chance(2) ? SPLICE_F_GIFT : 0));
	check_use(n, len, PIPE);
	if (n > 0) {
		if (chance(2))
			usleep(chance(3000));
		if (chance(4) && read(ends[0], data, n) != n)
			wrong("read of a pipe");
		else
			n = 0;
		check_words(data, n, SHARED_FILE, off, "what a pipe had");
	}
	close(ends[0]);
	close(ends[1]);
}

static void do_remote(void)
{
	static uint8_t data[MOST_PAGES * 4096];
	const pid_t pid = soak.me ? soak.peers[chance(soak.me)] : getpid();
	const bool write = chance(2);
	size_t off, len;
	ssize_t n;

	anywhere(&off, &len);
	put_words(data, len, SHARED_FILE, off);
	n = vm_copy(pid, data, soak.mapped + off, len, write);
	if (n >= 0 || errno != ESRCH)	/* the other one may have ended */
		check_use(n, len, REMOTE);
	if (n > 0)
		check_words(data, n, SHARED_FILE, off, "another process' memory");
}

/* A private mapping, some of it copied: by stores, and by O_DIRECT. */
static void do_private(void)
{
	size_t off, len;
	uint8_t *p = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, soak.fd, 0);
	ssize_t n;

	if (p == MAP_FAILED)
		wrong("mmap");
	anywhere(&off, &len);
	check_mapping(p, off, len, "load of a private page");
	if (!sigsetjmp(behind_end, 1))
		memset(p + off, 0xee, SECTOR);
	anywhere(&off, &len);
	n = pwrite(soak.direct, p + off, len, 0);
	check_use(n, len, DIRECT_WRITE);
	n = pread(soak.direct, p + off, len, 0);
	check_use(n, len, DIRECT_READ);
	munmap(p, FILE_BYTES);
}

static void do_truncate(void)
{
	if (ftruncate(soak.fd, chance(FILE_BYTES / SECTOR) * SECTOR))
		wrong("truncate");
	if (ftruncate(soak.fd, FILE_BYTES))
		wrong("truncate, back to the full size");
}

static void do_punch(void)
{
	static const int modes[] = {
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
	};
	size_t off, len;

	anywhere(&off, &len);
	if (fallocate(soak.fd, modes[chance(ARRAY_SIZE(modes))], off, len) && errno != EOPNOTSUPP)
		wrong("fallocate");
}

static void do_sync(void)
{
	size_t off = chance(FILE_BYTES / page) * page;

	if (chance(2) ? fsync(soak.fd) : msync(soak.mapped + off, FILE_BYTES - off, MS_SYNC))
		wrong("sync");
}

/* The child goes while its pages may be in use. */
static void do_fork(void)
{
	size_t off, len;
	int status;
	pid_t pid;

	anywhere(&off, &len);
	pid = fork();
	if (pid < 0)
		wrong("fork");
	if (!pid) {
		struct aio *aio = aio_open();

		check_mapping(soak.mapped, off, len, "load in a child");
		aio_submit(aio, true, soak.direct, aligned_buffer(page), page, 0);
		do_lend();
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		fail("process %d, seed %u, operation %lu: the child ended with status 0x%x",
		     soak.me, soak.seed, soak.count, status);
}

static void do_remap(void)
{
	uint8_t *place = reserve(FILE_BYTES, 2 << 20), *p;
	const size_t first = chance(FILE_BYTES / page - 1) * page + page;
	size_t off, len;

	/* A mapping of one's own, moved in two parts */
	p = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, soak.fd, 0);
	if (p == MAP_FAILED)
		wrong("mmap");
	anywhere(&off, &len);
	check_mapping(p, off, len, "load of another mapping");
	if (mremap(p, first, first, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
		wrong("mremap");
	if (mremap(p + first, FILE_BYTES - first, FILE_BYTES - first,
		   MREMAP_MAYMOVE | MREMAP_FIXED, place + first) != place + first)
		wrong("mremap");
	check_mapping(place, off, len, "load of a moved mapping");
	munmap(place, FILE_BYTES);
}

/* Files that come and go take the blocks which were cut off: their words are their own. */
static void do_other_file(void)
{
	const unsigned int number = OTHER_FILES + soak.me;
	const size_t len = 64 * page;
	char path[300];
	uint8_t *p;
	int fd;

	snprintf(path, sizeof(path), "%s/other%d", soak.dir, soak.me);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, len))
		wrong("another file");
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		wrong("mmap");
	check_words(p, len, number, 0, "load of a new file");
	put_words(p, len, number, 0);
	usleep(chance(2000));
	check_words(p, len, number, 0, "load of another file");
	munmap(p, len);
	close(fd);
	if (chance(2))
		unlink(path);
}

static void do_dontneed(void)
{
	static const int advices[] = { MADV_DONTNEED, 20, 21, MADV_WILLNEED };	/* COLD, PAGEOUT */
	size_t off = chance(FILE_BYTES / page) * page;

	if (madvise(soak.mapped + off, FILE_BYTES - off, advices[chance(ARRAY_SIZE(advices))]))
		wrong("madvise");
}

static void run(unsigned int seconds)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} operations[] = {
		{ "store", do_store }, { "store", do_store }, { "write", do_write },
		{ "read", do_read }, { "load", do_load }, { "O_DIRECT read", do_direct_read },
		{ "O_DIRECT read", do_direct_read }, { "O_DIRECT write", do_direct_write },
		{ "pipe", do_lend }, { "pipe", do_lend }, { "remote", do_remote },
		{ "private", do_private }, { "truncate", do_truncate }, { "punch", do_punch },
		{ "punch", do_punch }, { "sync", do_sync }, { "fork", do_fork },
		{ "remap", do_remap }, { "other file", do_other_file }, { "advice", do_dontneed },
	};
	const struct sigaction catch = { .sa_handler = caught };
	const time_t end = now() + seconds;
	uint32_t which;
	int way;

	sigaction(SIGBUS, &catch, NULL);
	seed_chance(soak.seed + soak.me);
	while (now() < end) {
		which = chance(ARRAY_SIZE(operations));
		soak.count++;
		soak.doing = operations[which].name;
		soak.all_doing[soak.me] = soak.doing;
		operations[which].run();
	}
	for (way = 0; way < WAYS; way++)
		if (soak.count >= ENOUGH && !soak.worked[way])
			fail("process %d: in %lu operations %s of the file's pages never worked",
			     soak.me, soak.count, way_names[way]);
	printf("process %d: %lu operations\n", soak.me, soak.count);
	fflush(stdout);
}

static void start_all(const char *plain, unsigned int seconds)
{
	char name[32];

	for (soak.me = 0; soak.me < PROCESSES; soak.me++) {
		soak.peers[soak.me] = fork();
		if (soak.peers[soak.me] < 0)
			wrong("fork");
		if (soak.peers[soak.me])
			continue;
		snprintf(name, sizeof(name), "direct%d", soak.me);
		unlink(in_dir(plain, name));
		soak.direct = create_in(plain, name, O_DIRECT);
		run(seconds);
		_exit(0);
	}
}

/* Whether all have ended well; what is stuck is named, and killed. */
static bool end_all(void)
{
	unsigned int limit_ms = END_LIMIT_MS;
	bool well = true;
	int i, status;

	for (i = 0; i < PROCESSES; i++) {
		if (!ends_within(soak.peers[i], limit_ms)) {
			fprintf(stderr, "process %d is stuck in an operation: %s\n", i,
				soak.all_doing[i]);
			limit_ms = 0;	/* the others had as much time */
			well = false;
		}
	}
	for (i = 0; i < PROCESSES; i++)
		kill(soak.peers[i], SIGKILL);
	for (i = 0; i < PROCESSES; i++) {
		if (waitpid(soak.peers[i], &status, 0) != soak.peers[i] || status)
			well = false;
	}
	return well;
}

int soak_pins(const char *dir, const char *plain, unsigned int seconds, unsigned int seed)
{
	bool well;

	soak.dir = dir;
	soak.seed = seed;
	soak.doing = "the start";
	soak.all_doing = (const char *volatile *)map(-1, page, PROT_READ | PROT_WRITE,
						     MAP_SHARED | MAP_ANONYMOUS, 0);
	soak.fd = open(in_dir(dir, "pinned"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (soak.fd < 0 || ftruncate(soak.fd, FILE_BYTES))
		wrong(dir);
	/* Not supported, it is a file with holes. */
	(void)!fallocate(soak.fd, 0, 0, FILE_BYTES);
	soak.mapped = mmap(reserve(FILE_BYTES, 2 << 20), FILE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED, soak.fd, 0);
	if (soak.mapped == MAP_FAILED)
		wrong("mmap");
	start_all(plain, seconds);
	/* Their time, and then the limit of what they do last */
	while (seconds && !ends_within(soak.peers[0], 1000))
		seconds--;
	well = end_all();
	soak.doing = "the end";
	resize(soak.fd, FILE_BYTES);
	check_words(soak.mapped, FILE_BYTES, SHARED_FILE, 0, "load");
	munmap(soak.mapped, FILE_BYTES);
	close(soak.fd);
	return well ? 0 : 1;
}
