// SPDX-License-Identifier: GPL-2.0-only
/* Group coherency: what a store does to the file, and what a file call does to the mapping. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daxprobe.h"

void point_store_then_read(void)
{
	int fd = create_filled("file", page, 1);
	volatile uint8_t *p = map_shared(fd, page);
	unsigned int round;
	uint8_t got;

	for (round = 0; round < 256; round++) {
		p[100] = round;
		get(fd, &got, 1, 100);
		CHECK(got == round, "stored 0x%02x, read(2) saw 0x%02x", round, got);
	}
}

void point_write_then_load(void)
{
	int fd = create_filled("file", page, 1);
	volatile uint8_t *p = map_shared(fd, page);
	unsigned int round;
	uint8_t put_byte;

	for (round = 0; round < 256; round++) {
		put_byte = round;
		put(fd, &put_byte, 1, 100);
		CHECK(p[100] == round, "wrote 0x%02x, the load saw 0x%02x", round, p[100]);
	}
}

/* Every length up to 17 at every offset in a cache line, and the neighbours stay as they were. */
static void unaligned(bool by_store)
{
	int fd = create_filled("file", page, 1);
	uint8_t *p = map_shared(fd, page);
	uint8_t want[128], seen[128], data[17];
	size_t off, len, round = 2;

	fill(want, sizeof(want), 1, 0);
	for (off = 0; off < 64; off++) {
		for (len = 1; len <= sizeof(data); len++, round++) {
			fill(data, len, round, off);
			memcpy(want + off, data, len);
			if (by_store) {
				memcpy(p + off, data, len);
				get(fd, seen, sizeof(seen), 0);
			} else {
				put(fd, data, len, off);
				memcpy(seen, p, sizeof(seen));
			}
			CHECK(!memcmp(seen, want, sizeof(seen)),
			      "%zu bytes at offset %zu were not seen as they were given", len, off);
		}
	}
}

void point_store_unaligned(void)
{
	unaligned(true);
}

void point_write_unaligned(void)
{
	unaligned(false);
}

void point_page_boundary(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);
	uint8_t data[33];
	size_t edge, before;

	for (edge = page; edge < 4 * page; edge += page) {
		for (before = 1; before < sizeof(data); before++) {
			fill(p + edge - before, sizeof(data), before, 0);
			get(fd, data, sizeof(data), edge - before);
			verify(data, sizeof(data), before, 0, "read across a page boundary");

			fill(data, sizeof(data), before + 100, 0);
			put(fd, data, sizeof(data), edge - before);
			verify(p + edge - before, sizeof(data), before + 100, 0,
			       "load across a page boundary");
		}
	}
}

/* One 64-bit access: ldrd and strd where the compiler would be free to use two words. */
static void store64(uint8_t *p, uint64_t value)
{
#ifdef __arm__
	asm volatile("strd %Q1, %R1, [%0]" : : "r" (p), "r" (value) : "memory");
#else
	*(volatile uint64_t *)p = value;
#endif
}

static uint64_t load64(const uint8_t *p)
{
	uint64_t value;

#ifdef __arm__
	asm volatile("ldrd %Q0, %R0, [%1]" : "=r" (value) : "r" (p) : "memory");
#else
	value = *(const volatile uint64_t *)p;
#endif
	return value;
}

void point_word64(void)
{
	int fd = create_filled("file", page, 1);
	uint8_t *p = map_shared(fd, page);
	uint64_t value, seen;
	size_t off;

	for (off = 0; off < page; off += sizeof(value)) {
		value = 0x0123456789abcdefULL * (off + 1);
		store64(p + off, value);
		get(fd, &seen, sizeof(seen), off);
		CHECK(seen == value, "stored 0x%016llx at %zu, read(2) saw 0x%016llx",
		      (unsigned long long)value, off, (unsigned long long)seen);
		value = ~value;
		put(fd, &value, sizeof(value), off);
		seen = load64(p + off);
		CHECK(seen == value, "wrote 0x%016llx at %zu, the load saw 0x%016llx",
		      (unsigned long long)value, off, (unsigned long long)seen);
	}
}

static void whole_pages(size_t pages)
{
	size_t len = pages * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);
	uint8_t *data = aligned_buffer(len);

	verify(p, len, 1, 0, "first load after write(2)");
	fill(p, len, 2, 0);
	verify_file(fd, len, 2, 0, "read(2) after stores");
	fill(data, len, 3, 0);
	put(fd, data, len, 0);
	verify(p, len, 3, 0, "loads after write(2) over a mapped page");
	verify_file(fd, len, 3, 0, "read(2) after write(2)");
}

void point_whole_page(void)
{
	whole_pages(1);
}

void point_many_pages(void)
{
	whole_pages(64);
}

void point_strides(void)
{
	static const size_t strides[] = { 31, 32, 64, 96, 1000, 4096, 4096 + 64, 12288 + 32 };
	const size_t len = 64 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);
	uint8_t *want = aligned_buffer(len), *seen = aligned_buffer(len);
	size_t i, off;

	fill(want, len, 1, 0);
	for (i = 0; i < ARRAY_SIZE(strides); i++) {
		for (off = 0; off < len; off += strides[i]) {
			want[off] = ~want[off] + i;
			p[off] = want[off];
		}
		get(fd, seen, len, 0);
		CHECK(!memcmp(seen, want, len), "stores %zu bytes apart: read(2) saw others",
		      strides[i]);
		for (off = 0; off < len; off += strides[i]) {
			want[off] ^= 0x3c;
			put(fd, want + off, 1, off);
			CHECK(p[off] == want[off], "write(2) every %zu bytes: load at %zu differs",
			      strides[i], off);
		}
		CHECK(!memcmp(p, want, len), "write(2) every %zu bytes changed other bytes",
		      strides[i]);
	}
}

void point_vectors(void)
{
	int fd = create_filled("file", 3 * page, 1);
	uint8_t *p = map_shared(fd, 3 * page);
	uint8_t a[7], b[4099], c[1];
	struct iovec parts[] = {
		{ a, sizeof(a) }, { b, sizeof(b) }, { NULL, 0 }, { c, sizeof(c) },
	};
	const ssize_t total = sizeof(a) + sizeof(b) + sizeof(c);
	const off_t off = page - 3;

	fill(p + off, total, 2, 0);
	CHECK(preadv(fd, parts, ARRAY_SIZE(parts), off) == total, "preadv: short, or %m");
	verify(a, sizeof(a), 2, 0, "first part of preadv");
	verify(b, sizeof(b), 2, sizeof(a), "second part of preadv");
	verify(c, sizeof(c), 2, sizeof(a) + sizeof(b), "last part of preadv");

	fill(a, sizeof(a), 3, 0);
	fill(b, sizeof(b), 3, sizeof(a));
	fill(c, sizeof(c), 3, sizeof(a) + sizeof(b));
	CHECK(pwritev(fd, parts, ARRAY_SIZE(parts), off) == total, "pwritev: short, or %m");
	verify(p + off, total, 3, 0, "loads after pwritev");
	verify(p, off, 1, 0, "the bytes before pwritev's");
}

void point_append(void)
{
	const size_t chunk = 1000, chunks = 30;
	int fd = create_in(point_dir, "file", O_APPEND);
	uint8_t *p = map_shared(fd, chunk * chunks);
	uint8_t data[1000];
	size_t i;

	for (i = 0; i < chunks; i++) {
		fill(data, chunk, 1, i * chunk);
		CHECK(write(fd, data, chunk) == (ssize_t)chunk, "append: short, or %m");
		CHECK(file_size(fd) == (off_t)((i + 1) * chunk), "size %lld after %zu appends",
		      (long long)file_size(fd), i + 1);
		verify(p + i * chunk, chunk, 1, i * chunk, "loads after an append");
	}
	verify(p, chunk * chunks, 1, 0, "all that was appended");
}

void point_eof_tail(void)
{
	int fd = create_filled("file", page + 100, 1);
	uint8_t *p = map_shared(fd, 2 * page);
	uint8_t data[200];
	ssize_t n;

	verify_zero(p + page + 100, page - 100, "the mapping behind the end of file");
	n = pread(fd, data, sizeof(data), page);
	CHECK(n == 100, "pread over the end of file: %zd bytes, expected 100", n);
	verify(data, 100, 1, page, "the last bytes of the file");
	CHECK(!pread(fd, data, sizeof(data), page + 100), "pread at the end of file is not 0");
	p[page + 150] = 0x77;	/* behind the end: no part of the file */
	CHECK(file_size(fd) == (off_t)page + 100, "a store behind the end changed the size");
	CHECK(pread(fd, data, sizeof(data), page) == 100, "a store behind the end can be read");
}

void point_far_offset(void)
{
	static const off_t offsets[] = { 1LL << 31, 1LL << 32, (5LL << 30) + 4096 };
	int fd = create("file");
	uint8_t *data = aligned_buffer(page), *p;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		fill(data, page, 10 + i, 0);
		put(fd, data, page, offsets[i]);
	}
	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		p = map(fd, page, PROT_READ | PROT_WRITE, MAP_SHARED, offsets[i]);
		verify(p, page, 10 + i, 0, "loads at a far offset");
		fill(p, page, 20 + i, 0);
		get(fd, data, page, offsets[i]);
		verify(data, page, 20 + i, 0, "read(2) at a far offset");
	}
	CHECK(blocks_of(fd) < 1 << 10, "a sparse file has %lld blocks", (long long)blocks_of(fd));
}

void point_sendfile_from(void)
{
	const size_t len = 10 * page;
	int from = create_filled("from", len, 1), to = create("to");
	uint8_t *p = map_shared(from, len);
	off_t off = 0;
	ssize_t n;

	fill(p, len, 2, 0);
	while (off < (off_t)len) {
		n = sendfile(to, from, &off, len - off);
		CHECK(n > 0, "sendfile at %lld: %m", (long long)off);
	}
	verify_file(to, len, 2, 0, "what sendfile sent");
}

void point_sendfile_into(void)
{
	const size_t len = 10 * page;
	int from = create_filled("from", len, 1), to = create_filled("to", len, 2);
	uint8_t *p = map_shared(to, len);
	off_t off = 0;
	ssize_t n;

	verify(p, len, 2, 0, "the target before");
	while (off < (off_t)len) {
		n = sendfile(to, from, &off, len - off);
		CHECK(n > 0, "sendfile at %lld: %m", (long long)off);
	}
	verify(p, len, 1, 0, "loads from the target's mapping");
}

void point_splice(void)
{
	int from = create_filled("from", 2 * page, 1), to = create_filled("to", 2 * page, 9);
	uint8_t *source = map_shared(from, 2 * page), *target = map_shared(to, 2 * page);
	loff_t out = 0, in = 33;
	const ssize_t len = page;
	int ends[2];
	ssize_t n;

	CHECK(!pipe(ends), "pipe: %m");
	verify(target, 2 * page, 9, 0, "the target before");
	fill(source, 2 * page, 2, 0);
	n = splice(from, &in, ends[1], NULL, len, 0);
	CHECK(n == len, "splice out of the file: %zd of %zd bytes (%m)", n, len);
	n = splice(ends[0], NULL, to, &out, len, 0);
	CHECK(n == len, "splice into the file: %zd of %zd bytes (%m)", n, len);
	verify(target, len, 2, 33, "loads of what was spliced");
	verify(target + len, page, 9, len, "the bytes behind");
}

void point_copy_file_range(void)
{
	const size_t len = 5 * page;
	int from = create_filled("from", len, 1), to = create_filled("to", len, 9);
	uint8_t *source = map_shared(from, len), *target = map_shared(to, len);
	loff_t in = 0, out = 0;
	ssize_t n;

	verify(target, len, 9, 0, "the target before");
	fill(source, len, 2, 0);
	while (in < (off_t)len) {
		n = copy_file_range(from, &in, to, &out, len - in, 0);
		CHECK(n > 0, "copy_file_range at %lld: %m", (long long)in);
	}
	verify(target, len, 2, 0, "loads of the copy");
}

/* The source of write(2) is a mapping of the very file; its pages are not yet faulted in. */
void point_write_from_itself(void)
{
	const size_t len = 8 * page;
	int fd = create_filled("file", 2 * len, 1);
	uint8_t *p = map_shared(fd, 2 * len);

	put(fd, p + 1, len - 1, len);
	verify(p + len, len - 1, 1, 1, "loads of what was written from the same file");
	verify_file(fd, len, 1, 0, "the source");
}

void point_read_into_itself(void)
{
	const size_t len = 8 * page;
	int fd = create_filled("file", 2 * len, 1);
	uint8_t *p = map_shared(fd, 2 * len);
	uint8_t *seen = aligned_buffer(len);

	get(fd, p + len + 1, len - 1, 0);
	verify_file(fd, len, 1, 0, "the source");
	verify(p + len + 1, len - 1, 1, 0, "what read(2) put into the same file");
	get(fd, seen, len - 1, len + 1);
	verify(seen, len - 1, 1, 0, "the file that read(2) has read into");
}

void point_odirect_on_file(void)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1), direct;
	uint8_t *p = map_shared(fd, len);
	uint8_t *data = aligned_buffer(len);

	direct = open(in_dir(point_dir, "file"), O_RDWR | O_DIRECT);
	CHECK(direct >= 0, "open with O_DIRECT: %m");
	verify(p, len, 1, 0, "before");
	fill(p, len, 2, 0);
	get(direct, data, len, 0);
	verify(data, len, 2, 0, "O_DIRECT read after stores");
	fill(data, len, 3, 0);
	put(direct, data, len, 0);
	verify(p, len, 3, 0, "loads after an O_DIRECT write");
}

void point_two_descriptors(void)
{
	int fd = create_filled("file", page, 1);
	int again = open(in_dir(point_dir, "file"), O_RDONLY);
	uint8_t *p = map_shared(fd, page);
	uint8_t *q;

	CHECK(again >= 0, "open: %m");
	q = map(again, page, PROT_READ, MAP_SHARED, 0);
	fill(p, page, 2, 0);
	verify_file(again, page, 2, 0, "read(2) by another descriptor");
	verify(q, page, 2, 0, "loads by a read-only mapping of another descriptor");
}
