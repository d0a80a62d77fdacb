// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group direct: O_DIRECT on other files, with buffers in a DAX mapping. The block layer works on
 * the pages themselves, pinned, at whatever state they are in: touched, not yet touched, a hole.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daxprobe.h"

/* What O_DIRECT on a disk is aligned to */
#define SECTOR ((size_t)512)

static void read_direct(int fd, void *buf, size_t len, off_t off)
{
	ssize_t n = pread(fd, buf, len, off);

	CHECK(n >= 0, "O_DIRECT read of %zu bytes: %m", len);
	CHECK((size_t)n == len, "O_DIRECT read gave %zd of %zu bytes", n, len);
}

static void write_direct(int fd, const void *buf, size_t len, off_t off)
{
	ssize_t n = pwrite(fd, buf, len, off);

	CHECK(n >= 0, "O_DIRECT write of %zu bytes: %m", len);
	CHECK((size_t)n == len, "O_DIRECT write took %zd of %zu bytes", n, len);
}

/* What is on the disk, by ordinary memory */
static void verify_disk(int direct, size_t len, unsigned int seed, size_t off, const char *what)
{
	uint8_t *data = aligned_buffer(len);

	read_direct(direct, data, len, 0);
	verify(data, len, seed, off, what);
	munmap(data, len);
}

void point_direct_read(void)
{
	uint8_t *p = touched(4);
	int direct = direct_file(4 * page, 3);

	read_direct(direct, p, 4 * page, 0);
	verify(p, 4 * page, 3, 0, "the mapping");
	verify_named("dax", 4 * page, 3, 0, "the file by read(2)");
	CHECK(!msync(p, 4 * page, MS_SYNC), "msync: %m");
	verify(map_again("dax", 4 * page, MAP_SHARED), 4 * page, 3, 0, "another mapping");
}

void point_direct_write(void)
{
	uint8_t *p = touched(4);
	int direct = direct_file(4 * page, 3);

	write_direct(direct, p, 4 * page, 0);
	verify_disk(direct, 4 * page, 2, 0, "the disk");
	fill(p, page, 5, 0);
	write_direct(direct, p, page, 0);
	verify_disk(direct, page, 5, 0, "the disk after the next store");
	verify(p, page, 5, 0, "the mapping");
}

/* Pages another way through get_user_pages: it has to fault them first. */
void point_direct_untouched(void)
{
	int dax = create_filled("dax", 4 * page, 2);
	uint8_t *p = map_shared(dax, 4 * page);
	int direct = direct_file(2 * page, 3);

	read_direct(direct, p, 2 * page, 0);
	verify_file(dax, 2 * page, 3, 0, "the file");
	verify(p, 2 * page, 3, 0, "the mapping");
	write_direct(direct, p + 2 * page, 2 * page, 0);
	verify_disk(direct, 2 * page, 2, 2 * page, "the disk");
	verify(p + 2 * page, 2 * page, 2, 2 * page, "the rest of the mapping");
}

void point_direct_hole(void)
{
	int dax = create_hole("dax", 8 * page), direct = direct_file(2 * page, 3);
	uint8_t *p = map_shared(dax, 8 * page), *data = aligned_buffer(2 * page);
	const blkcnt_t before = blocks_of(dax);

	write_direct(direct, p + 4 * page, 2 * page, 0);
	read_direct(direct, data, 2 * page, 0);
	verify_zero(data, 2 * page, "the disk, written from a hole");
	CHECK(blocks_of(dax) == before, "a write from a hole has allocated %lld blocks",
	      (long long)(blocks_of(dax) - before));

	fill(data, 2 * page, 3, 0);
	write_direct(direct, data, 2 * page, 0);
	(void)*(volatile uint8_t *)(p + page);	/* one of the two by the zero page */
	read_direct(direct, p + page, 2 * page, 0);
	verify(p + page, 2 * page, 3, 0, "the hole after a read into it");
	verify_zero(p, page, "the page before");
	verify_zero(p + 3 * page, 5 * page, "the pages behind");
	CHECK(blocks_of(dax) - before == (blkcnt_t)(2 * page / 512),
	      "a read into two pages of a hole has allocated %lld blocks of 512 bytes",
	      (long long)(blocks_of(dax) - before));
	get(dax, data, 2 * page, page);
	verify(data, 2 * page, 3, 0, "the file");
}

/* One request over pages in every state */
void point_direct_mixture(void)
{
	enum { PAGES = 64 };
	int dax = create_hole("dax", PAGES * page), direct = direct_file(PAGES * page, 3);
	uint8_t *p, *data = aligned_buffer(page);
	size_t i;

	fill(data, page, 2, 0);
	for (i = 0; i < PAGES; i += 3)
		put(dax, data, page, i * page);
	p = map_shared(dax, PAGES * page);
	for (i = 0; i < PAGES; i += 4)
		(void)*(volatile uint8_t *)(p + i * page);
	for (i = 0; i < PAGES; i += 5)
		p[i * page] = 1;
	read_direct(direct, p, PAGES * page, 0);
	verify(p, PAGES * page, 3, 0, "the mapping");
	verify_file(dax, PAGES * page, 3, 0, "the file");
	fill(p, PAGES * page, 4, 0);
	write_direct(direct, p, PAGES * page, 0);
	verify_disk(direct, PAGES * page, 4, 0, "the disk");
}

static void check_private(bool touch)
{
	int dax = create_filled("dax", 3 * page, 1), direct = direct_file(3 * page, 3);
	uint8_t *p = map_private(dax, 3 * page), *shared = map_shared(dax, 3 * page);

	if (touch)
		verify(p, 3 * page, 1, 0, "a private mapping that is not copied");
	write_direct(direct, p, page, 0);
	verify_disk(direct, page, 1, 0, "the disk");
	read_direct(direct, p + page, page, 0);
	verify(p + page, page, 1, 0, "the private page after a read into it");
	verify(p, page, 1, 0, "the page before");
	verify_file(dax, 3 * page, 1, 0, "the file under it");
	read_direct(direct, p + 2 * page, page, page);
	verify(p + 2 * page, page, 3, page, "a private page that was read into");
	verify(shared, 3 * page, 1, 0, "the shared mapping");
	verify_file(dax, 3 * page, 1, 0, "the file");
}

void point_direct_private_uncopied(void)
{
	check_private(true);
}

void point_direct_private_untouched(void)
{
	check_private(false);
}

void point_direct_private_hole(void)
{
	int dax = create_hole("dax", 4 * page), direct = direct_file(2 * page, 3);
	uint8_t *p = map_private(dax, 4 * page), *data = aligned_buffer(page);
	const blkcnt_t before = blocks_of(dax);

	(void)*(volatile uint8_t *)p;
	write_direct(direct, p, page, 0);
	read_direct(direct, data, page, 0);
	verify_zero(data, page, "the disk");
	read_direct(direct, p, page, page);
	read_direct(direct, p + 2 * page, page, page);
	verify(p, page, 3, page, "a private page over a hole");
	verify(p + 2 * page, page, 3, page, "one that nobody had touched");
	CHECK(blocks_of(dax) == before, "private pages have allocated blocks");
	verify_file_zero(dax, 4 * page, "the file");
}

/* Sectors at every place in a page; the bytes around them stay. */
void point_direct_unaligned(void)
{
	int dax = create_filled("dax", 4 * page, 2), direct = direct_file(2 * page, 3);
	uint8_t *p = map_shared(dax, 4 * page);
	size_t at, len;

	for (at = 0; at < page; at += SECTOR) {
		len = SECTOR * (1 + at / SECTOR % 3);
		fill(p, 4 * page, 2, 0);
		read_direct(direct, p + at, len, SECTOR);
		verify(p, at, 2, 0, "the bytes before");
		verify(p + at, len, 3, SECTOR, "the sectors that were read");
		verify(p + at + len, page, 2, at + len, "the bytes behind");
	}
	fill(p, 4 * page, 4, 0);
	for (at = SECTOR; at < page; at += SECTOR) {
		write_direct(direct, p + at, page + SECTOR, 0);
		verify_disk(direct, page + SECTOR, 4, at, "the disk");
	}
}

/* Parts in different pages, mappings and kinds of memory, in one request */
void point_direct_vectors(void)
{
	int dax = create_filled("dax", 4 * page, 2), direct = direct_file(3 * page, 3);
	uint8_t *shared = map_shared(dax, 4 * page), *mine = map_private(dax, 4 * page);
	uint8_t *plain = aligned_buffer(page);
	const struct iovec parts[] = {
		{ shared + page + SECTOR, SECTOR }, { plain, page }, { mine + 2 * page, page },
		{ shared + 3 * page, SECTOR },
	};
	const ssize_t all = 2 * page + 2 * SECTOR;

	CHECK(preadv(direct, parts, ARRAY_SIZE(parts), 0) == all, "preadv: %m");
	verify(shared + page + SECTOR, SECTOR, 3, 0, "the first part");
	verify(plain, page, 3, SECTOR, "the second part");
	verify(mine + 2 * page, page, 3, SECTOR + page, "the third part");
	verify(shared + 3 * page, SECTOR, 3, SECTOR + 2 * page, "the fourth part");
	verify_file(dax, page + SECTOR, 2, 0, "the file before the parts");
	fill(shared + page + SECTOR, SECTOR, 4, 0);
	fill(plain, page, 4, SECTOR);
	fill(mine + 2 * page, page, 4, SECTOR + page);
	fill(shared + 3 * page, SECTOR, 4, SECTOR + 2 * page);
	CHECK(pwritev(direct, parts, ARRAY_SIZE(parts), 0) == all, "pwritev: %m");
	verify_disk(direct, all, 4, 0, "the disk");
}

void point_direct_read_only(void)
{
	int dax = create_filled("dax", page, 2), direct = direct_file(page, 3);
	uint8_t *p = map(dax, page, PROT_READ, MAP_SHARED, 0);

	CHECK_ERRNO(pread(direct, p, page, 0), EFAULT);
	verify_file(dax, page, 2, 0, "the file after the refused read");
	write_direct(direct, p, page, 0);
	verify_disk(direct, page, 2, 0, "the disk");
}

/* Behind the end of file there is no page. */
void point_direct_behind_end(void)
{
	int dax = create_filled("dax", page, 2), direct = direct_file(page, 3);
	uint8_t *p = map_shared(dax, 3 * page);

	CHECK_ERRNO(pread(direct, p + page, page, 0), EFAULT);
	CHECK_ERRNO(pwrite(direct, p + page, page, 0), EFAULT);
	CHECK(file_size(dax) == (off_t)page, "the file has grown");
	verify_disk(direct, page, 3, 0, "the disk");
}

void point_direct_itself(void)
{
	int dax = create_filled("dax", 4 * page, 2), other = create_in(point_dir, "b", O_DIRECT);
	int itself = open(in_dir(point_dir, "dax"), O_RDWR | O_DIRECT);
	uint8_t *p = map_shared(dax, 4 * page);

	CHECK(itself >= 0, "open with O_DIRECT: %m");
	write_direct(other, p, 2 * page, 0);
	verify_named("b", 2 * page, 2, 0, "another file of the file system");
	read_direct(other, p + 2 * page, 2 * page, 0);
	verify(p + 2 * page, 2 * page, 2, 0, "the mapping, read into from another file");
	write_direct(itself, p, page, 3 * page);
	verify(p + 3 * page, page, 2, 0, "the mapping, its file written from itself");
	fill(p, page, 5, 0);
	read_direct(itself, p + page, page, 0);
	verify(p + page, page, 5, 0, "the mapping, read into from its own file");
}

static struct timespec modified(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st), "fstat: %m");
	return st.st_mtim;
}

/* msync write-protects: what O_DIRECT then puts into the page counts as a store. */
void point_direct_is_noticed(void)
{
	uint8_t *p = touched(2);
	int direct = direct_file(page, 3), dax = open(in_dir(point_dir, "dax"), O_RDWR);
	struct timespec before, after;

	CHECK(!msync(p, 2 * page, MS_SYNC), "msync: %m");
	before = modified(dax);
	usleep(50000);	/* some ticks of the clock that time stamps are taken from */
	read_direct(direct, p, page, 0);
	CHECK(!msync(p, 2 * page, MS_SYNC), "msync: %m");
	after = modified(dax);
	CHECK(after.tv_sec != before.tv_sec || after.tv_nsec != before.tv_nsec,
	      "the file's time of modification did not change");
	verify(p, page, 3, 0, "the mapping");
}

/* Two processes: the pages of one's private copies are not the other's. */
void point_direct_after_fork(void)
{
	int dax = create_filled("dax", 2 * page, 1), direct = direct_file(2 * page, 3);
	uint8_t *mine = map_private(dax, 2 * page), *shared = map_shared(dax, 2 * page);
	struct baton b;
	pid_t pid;

	fill(mine, page, 2, 0);
	baton_make(&b);
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		baton_await_parent(&b);
		verify(mine, page, 2, 0, "the child's private copy");
		verify(mine + page, page, 1, page, "the child's uncopied page");
		read_direct(direct, shared + page, page, page);
		read_direct(direct, mine, page, page);
		_exit(0);
	}
	read_direct(direct, mine, 2 * page, 0);
	baton_to_child(&b);
	join(pid);
	verify(mine, 2 * page, 3, 0, "the parent's private copies");
	verify(shared + page, page, 3, page, "what the child read into the shared page");
	verify(shared, page, 1, 0, "the file's other page");
}

void point_direct_aio(void)
{
	enum { PAGES = 32, EACH = 4 };
	int dax = create_hole("dax", PAGES * page), direct = direct_file(PAGES * page, 3);
	uint8_t *p = map_shared(dax, PAGES * page);
	struct aio *aio = aio_open();
	size_t i;

	for (i = 0; i < PAGES; i += EACH)
		aio_submit(aio, false, direct, p + i * page, EACH * page, i * page);
	for (i = 0; i < PAGES; i += EACH)
		aio_await(aio, EACH * page);
	verify(p, PAGES * page, 3, 0, "the mapping");
	verify_file(dax, PAGES * page, 3, 0, "the file");
	fill(p, PAGES * page, 4, 0);
	for (i = 0; i < PAGES; i += EACH)
		aio_submit(aio, true, direct, p + i * page, EACH * page, i * page);
	for (i = 0; i < PAGES; i += EACH)
		aio_await(aio, EACH * page);
	verify_disk(direct, PAGES * page, 4, 0, "the disk");
}
