// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records for power-cut tests. A file is an array of records; record N (1, 2, ...) stands at
 * (N - 1) * 192 and crosses cache lines, at times pages. All words are little-endian:
 *
 *     0  magic "DAXR"    4  sequence number N    8  180 bytes that follow from N
 *   188  CRC-32 (the one of zlib) of the bytes before
 *
 * A record of zeros was never written; one that is neither whole nor zero is torn.
 *
 * BY_OVERWRITE keeps SLOTS places, and record N overwrites record N - SLOTS, in turn by a store and by
 * a write. BY_RENAME keeps one place: a new file with record N takes the old one's name.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxprobe.h"

#define MAGIC "DAXR"
#define SLOTS 64

struct record {
	char magic[4];
	uint32_t sequence;
	uint8_t body[180];
	uint32_t crc;
};

size_t record_size(void)
{
	return sizeof(struct record);
}

static uint32_t crc32(const void *data, size_t len)
{
	const uint8_t *p = data;
	uint32_t crc = ~0u;
	int bit;

	while (len--) {
		crc ^= *p++;
		for (bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	}
	return ~crc;
}

static void make_record(struct record *record, uint32_t sequence)
{
	memcpy(record->magic, MAGIC, sizeof(record->magic));
	record->sequence = htole32(sequence);
	fill(record->body, sizeof(record->body), sequence, 0);
	record->crc = htole32(crc32(record, offsetof(struct record, crc)));
}

static bool is_whole(const struct record *record, uint32_t sequence)
{
	return !memcmp(record->magic, MAGIC, sizeof(record->magic)) &&
		le32toh(record->sequence) == sequence &&
		le32toh(record->crc) == crc32(record, offsetof(struct record, crc));
}

static bool is_zero(const struct record *record)
{
	static const struct record zero;

	return !memcmp(record, &zero, sizeof(zero));
}

static int complain(const char *what, const char *path)
{
	fprintf(stderr, "daxprobe: cannot %s %s: %s\n", what, path, strerror(errno));
	return 2;
}

/* A new file's name is durable only once its directory is. */
static int sync_parent(const char *path)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY) : -1;
	int ret = fd < 0 || fsync(fd) ? complain("sync the directory of", path) : 0;

	if (fd >= 0)
		close(fd);
	free(copy);
	return ret;
}

/* Set by --no-sync: the campaign of power cuts must notice what a writer does not sync. */
static bool no_sync;

void records_do_not_sync(void)
{
	no_sync = true;
}

static int store_and_msync(uint8_t *map, const struct record *record, size_t off)
{
	const size_t first = off & ~(page - 1);

	memcpy(map + off, record, sizeof(*record));
	return no_sync ? 0 : msync(map + first, off - first + sizeof(*record), MS_SYNC);
}

static int write_and_fsync(int fd, const struct record *record, size_t off)
{
	if (pwrite(fd, record, sizeof(*record), off) != sizeof(*record))
		return -1;
	return no_sync ? 0 : fsync(fd);
}

static int replace_file(const char *path, const struct record *record)
{
	char new[PATH_MAX];
	int fd, ret;

	if ((size_t)snprintf(new, sizeof(new), "%s.new", path) >= sizeof(new)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = open(new, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return -1;
	ret = write_and_fsync(fd, record, 0);
	close(fd);
	if (ret || rename(new, path))
		return -1;
	return no_sync || !sync_parent(path) ? 0 : -1;
}

/* Zeros, and blocks behind them: to overwrite needs no allocation. */
static int fill_with_zeros(int fd, size_t len)
{
	static const char zeros[sizeof(struct record)];
	size_t off;

	for (off = 0; off < len; off += sizeof(zeros))
		if (pwrite(fd, zeros, sizeof(zeros), off) != sizeof(zeros))
			return -1;
	return fsync(fd);
}

static int put_record(const char *path, int fd, uint8_t *map, const struct record *record,
		      uint32_t sequence, enum record_sync how)
{
	const uint32_t place = how == BY_OVERWRITE ? (sequence - 1) % SLOTS : sequence - 1;
	const size_t off = (size_t)place * sizeof(*record);

	switch (how) {
	case BY_MSYNC:
		return store_and_msync(map, record, off);
	case BY_OVERWRITE:
		return sequence % 2 ? store_and_msync(map, record, off) :
				      write_and_fsync(fd, record, off);
	case BY_RENAME:
		return replace_file(path, record);
	default:
		return write_and_fsync(fd, record, off);
	}
}

/*
 * The file has its full size first, by BY_MSYNC as a hole: each record's block is allocated when it
 * is stored, so that msync answers for the file system's metadata, too.
 */
int records_write(const char *path, uint32_t count, enum record_sync how, bool acknowledge)
{
	const uint32_t places = how == BY_OVERWRITE ? SLOTS : count;
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	size_t len;
	uint8_t *map = MAP_FAILED;
	struct record record;
	uint32_t sequence;
	int fd, ret;

	if (__builtin_mul_overflow(places, sizeof(record), &len)) {
		errno = EFBIG;
		return complain("write so many records to", path);
	}
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return complain("create", path);
	ret = sync_parent(path);
	if (!ret && (how == BY_MSYNC || how == BY_OVERWRITE)) {
		if (how == BY_MSYNC ? !ftruncate(fd, len) && !fsync(fd) : !fill_with_zeros(fd, len))
			map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			ret = complain("map", path);
	}
	for (sequence = 1; !ret && sequence <= count; sequence++) {
		make_record(&record, sequence);
		if (put_record(path, fd, map, &record, sequence, how))
			ret = complain("write a record to", path);
		else if (acknowledge &&
			 (printf("%s acked %u\n", name, sequence) < 0 || fflush(stdout)))
			ret = complain("acknowledge a record of", path);
	}
	if (map != MAP_FAILED)
		munmap(map, len);
	close(fd);
	return ret;
}

int records_check(const char *path, struct record_report *report)
{
	FILE *file = fopen(path, "r");
	struct record record;
	uint32_t sequence;
	int ret = 0;

	memset(report, 0, sizeof(*report));
	if (!file)
		return complain("open", path);
	memset(&record, 0, sizeof(record));
	for (sequence = 1; fread(&record, 1, sizeof(record), file) > 0; sequence++) {
		if (is_whole(&record, sequence)) {
			report->highest = sequence;
			report->valid++;
		} else {
			report->torn += !is_zero(&record);
			if (!report->first_bad)
				report->first_bad = sequence;
		}
		memset(&record, 0, sizeof(record));	/* the last one may be cut short */
	}
	if (ferror(file))
		ret = complain("read", path);
	if (!report->first_bad)
		report->first_bad = sequence;
	report->missing = report->highest - report->valid;
	fclose(file);
	return ret;
}
