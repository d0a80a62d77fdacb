// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records for power-cut tests. A file is an array of records; record N (1, 2, ...) stands at
 * (N - 1) * 192 and crosses cache lines, at times pages. All words are little-endian:
 *
 *     0  magic "DAXR"    4  sequence number N    8  180 bytes that follow from N
 *   188  CRC-32 (the one of zlib) of the bytes before
 *
 * A record of zeros was never written; one that is neither whole nor zero is torn.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxprobe.h"

#define MAGIC "DAXR"

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

static int store_and_msync(uint8_t *map, const struct record *record, size_t off)
{
	const size_t first = off & ~(page - 1);

	memcpy(map + off, record, sizeof(*record));
	return msync(map + first, off - first + sizeof(*record), MS_SYNC);
}

static int write_and_fsync(int fd, const struct record *record, size_t off)
{
	if (pwrite(fd, record, sizeof(*record), off) != sizeof(*record))
		return -1;
	return fsync(fd);
}

/*
 * The file has its full size first, by BY_MSYNC as a hole: each record's block is allocated when it
 * is stored, so that msync answers for the file system's metadata, too.
 */
int records_write(const char *path, uint32_t count, enum record_sync how, bool acknowledge)
{
	size_t len;
	uint8_t *map = MAP_FAILED;
	struct record record;
	uint32_t sequence;
	int fd, ret;

	if (__builtin_mul_overflow(count, sizeof(record), &len)) {
		errno = EFBIG;
		return complain("write so many records to", path);
	}
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		return complain("create", path);
	ret = sync_parent(path);
	if (!ret && how == BY_MSYNC) {
		if (!ftruncate(fd, len) && !fsync(fd))
			map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			ret = complain("map", path);
	}
	for (sequence = 1; !ret && sequence <= count; sequence++) {
		const size_t off = (size_t)(sequence - 1) * sizeof(record);

		make_record(&record, sequence);
		if (how == BY_MSYNC ? store_and_msync(map, &record, off) :
				      write_and_fsync(fd, &record, off))
			ret = complain("write a record to", path);
		else if (acknowledge && (printf("acked %u\n", sequence) < 0 || fflush(stdout)))
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
