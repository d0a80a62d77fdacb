// SPDX-License-Identifier: GPL-2.0-only
/* Group sharing: several mappings, processes and threads on one file, and private copies. */
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxprobe.h"

/* What the two sides of a point know; the child of fork() has a copy. */
struct pair {
	struct baton baton;
	int fd;
	uint8_t *p;
	size_t len;
};

static void make_pair(struct pair *pair, size_t pages)
{
	pair->len = pages * page;
	pair->fd = create_filled("file", pair->len, 1);
	pair->p = map_shared(pair->fd, pair->len);
	baton_make(&pair->baton);
}

#define ROUNDS 50

static void answer_by_file_calls(void *arg)
{
	struct pair *pair = arg;
	uint8_t data[300];
	unsigned int round;

	for (round = 0; round < ROUNDS; round++) {
		baton_await_parent(&pair->baton);
		verify_file(pair->fd, sizeof(data), round, 4000, "read(2) in the other process");
		fill(data, sizeof(data), round + 1000, 0);
		put(pair->fd, data, sizeof(data), 4000);
		baton_to_parent(&pair->baton);
	}
}

void point_ping_pong(void)
{
	struct pair pair;
	unsigned int round;
	pid_t child;

	make_pair(&pair, 2);
	child = start(answer_by_file_calls, &pair);
	for (round = 0; round < ROUNDS; round++) {
		fill(pair.p + 4000, 300, round, 4000);
		baton_to_child(&pair.baton);
		baton_await_child(&pair.baton);
		verify(pair.p + 4000, 300, round + 1000, 0, "loads of the other's write(2)");
	}
	join(child);
}

static void answer_by_mapping(void *arg)
{
	struct pair *pair = arg;
	uint8_t *q = map_shared(pair->fd, pair->len);	/* at another address than the parent's */
	unsigned int round;

	CHECK(q != pair->p, "the second mapping stands on the first");
	for (round = 0; round < ROUNDS; round++) {
		baton_await_parent(&pair->baton);
		verify(q + 4000, 300, round, 0, "loads of the other process' stores");
		fill(q + 4000, 300, round + 1000, 0);
		baton_to_parent(&pair->baton);
	}
}

void point_ping_pong_mapped(void)
{
	struct pair pair;
	unsigned int round;
	pid_t child;

	make_pair(&pair, 2);
	child = start(answer_by_mapping, &pair);
	for (round = 0; round < ROUNDS; round++) {
		fill(pair.p + 4000, 300, round, 0);
		baton_to_child(&pair.baton);
		baton_await_child(&pair.baton);
		verify(pair.p + 4000, 300, round + 1000, 0, "loads of the other's stores");
	}
	join(child);
}

static void count_up(void *arg)
{
	uint32_t *counter = arg;
	int i;

	for (i = 0; i < 20000; i++)
		__atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
}

/* ldrex and strex on the memory itself */
void point_atomic_counter(void)
{
	int fd = create_filled("file", page, 0);
	uint32_t *counter = (uint32_t *)map_shared(fd, page), seen;
	pid_t child[3];
	size_t i;

	__atomic_store_n(counter, 0, __ATOMIC_SEQ_CST);
	for (i = 0; i < ARRAY_SIZE(child); i++)
		child[i] = start(count_up, counter);
	for (i = 0; i < ARRAY_SIZE(child); i++)
		join(child[i]);
	get(fd, &seen, sizeof(seen), 0);
	CHECK(seen == 60000, "three processes counted to %u instead of 60000", seen);
}

void point_two_mappings(void)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len), *q = map_shared(fd, len);

	CHECK(p != q, "two mappings at one address");
	fill(p, len, 2, 0);
	verify(q, len, 2, 0, "the second mapping after stores to the first");
	fill(q, len, 3, 0);
	verify(p, len, 3, 0, "the first mapping after stores to the second");
}

/*
 * The same page at every colour that a 64 KiB cache way would have: stores at one, loads at all.
 * An aliasing cache would show stale lines here.
 */
void point_colours(void)
{
	enum { COLOURS = 16 };
	int fd = create_filled("file", page, 1);
	uint8_t *base = reserve(COLOURS * (COLOURS + 1) * page, COLOURS * page);
	uint8_t *at[COLOURS];
	unsigned int i, j;

	for (i = 0; i < COLOURS; i++) {
		at[i] = mmap(base + i * (COLOURS + 1) * page, page, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_FIXED, fd, 0);
		CHECK(at[i] != MAP_FAILED, "mmap at colour %u: %m", i);
	}
	for (i = 0; i < COLOURS; i++) {
		fill(at[i], page, 10 + i, 0);
		for (j = 0; j < COLOURS; j++)
			verify(at[j], page, 10 + i, 0, "loads at another colour");
		verify_file(fd, page, 10 + i, 0, "read(2) after stores at a colour");
	}
}

/* Each page of a file at an address whose colour differs from the page's offset. */
void point_shifted_colours(void)
{
	enum { PAGES = 16 };
	int fd = create_filled("file", PAGES * page, 1);
	uint8_t *base = reserve((PAGES + 5) * page, 16 * page), *p;
	unsigned int shift;

	for (shift = 0; shift < 5; shift++) {
		p = mmap(base + shift * page, PAGES * page, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0);
		CHECK(p != MAP_FAILED, "mmap %u pages off: %m", shift);
		verify(p, PAGES * page, shift + 1, 0, "loads of what the last mapping stored");
		fill(p, PAGES * page, shift + 2, 0);
		verify_file(fd, PAGES * page, shift + 2, 0, "read(2) after stores");
		CHECK(!munmap(p, PAGES * page), "munmap: %m");
	}
}

static void answer_in_place(void *arg)
{
	struct pair *pair = arg;

	verify(pair->p, pair->len, 2, 0, "what the parent stored before fork()");
	baton_to_parent(&pair->baton);
	baton_await_parent(&pair->baton);
	verify(pair->p, pair->len, 3, 0, "what the parent stored after fork()");
	fill(pair->p, pair->len, 4, 0);
}

void point_fork_shared(void)
{
	struct pair pair;
	pid_t child;

	make_pair(&pair, 4);
	fill(pair.p, pair.len, 2, 0);
	child = start(answer_in_place, &pair);
	baton_await_child(&pair.baton);
	fill(pair.p, pair.len, 3, 0);
	baton_to_child(&pair.baton);
	join(child);
	verify(pair.p, pair.len, 4, 0, "what the child stored");
	verify_file(pair.fd, pair.len, 4, 0, "the file after the child's stores");
}

static void change_private(void *arg)
{
	struct pair *pair = arg;

	verify(pair->p, page, 2, 0, "the parent's private page in the child");
	verify(pair->p + page, page, 1, page, "the untouched private page in the child");
	fill(pair->p, 2 * page, 3, 0);
	baton_to_parent(&pair->baton);
	baton_await_parent(&pair->baton);
	verify(pair->p, page, 3, 0, "the child's copy after the parent's stores");
}

void point_fork_private(void)
{
	struct pair pair;
	pid_t child;

	make_pair(&pair, 2);
	pair.p = map_private(pair.fd, pair.len);
	fill(pair.p, page, 2, 0);
	child = start(change_private, &pair);
	baton_await_child(&pair.baton);
	verify(pair.p, page, 2, 0, "the parent's page after the child's stores");
	verify(pair.p + page, page, 1, page, "the parent's untouched page");
	fill(pair.p, page, 4, 0);
	baton_to_child(&pair.baton);
	join(child);
	verify_file(pair.fd, pair.len, 1, 0, "the file");
}

static void leave_after_use(void *arg)
{
	struct pair *pair = arg;

	pair->p[page] = pair->p[0] + 1;
	munmap(pair->p, page);	/* the rest goes with the process */
}

/* Exit of a process is where the kernel checks what it had mapped ("Bad page map"). */
void point_fork_and_exit(void)
{
	struct pair pair;
	unsigned int i;

	make_pair(&pair, 4);
	for (i = 0; i < 30; i++) {
		pair.p[0] = i;
		join(start(leave_after_use, &pair));
		CHECK(pair.p[page] == (uint8_t)(i + 1), "child %u left %u behind", i,
		      pair.p[page]);
	}
	verify_file(pair.fd, page, 1, 2 * page, "a page that nobody touched");
}

void point_private_store(void)
{
	const size_t len = 3 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_private(fd, len), *shared = map_shared(fd, len);

	fill(p + page, page, 2, 0);
	verify(p + page, page, 2, 0, "the private page itself");
	verify(shared, len, 1, 0, "a shared mapping of the file");
	verify_file(fd, len, 1, 0, "the file");
}

/* Linux' behaviour: a private page that nobody wrote follows the file. */
void point_private_follows(void)
{
	const size_t len = 2 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_private(fd, len), *shared = map_shared(fd, len);
	uint8_t *data = aligned_buffer(len);

	verify(p, len, 1, 0, "the private mapping at first");
	fill(shared, len, 2, 0);
	verify(p, len, 2, 0, "untouched private pages after shared stores");
	fill(data, len, 3, 0);
	put(fd, data, len, 0);
	verify(p, len, 3, 0, "untouched private pages after write(2)");
}

void point_private_copy(void)
{
	const size_t len = 2 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_private(fd, len), *shared = map_shared(fd, len);
	const size_t at = 1234;
	const uint8_t stored = ~pattern(1, at);

	p[at] = stored;		/* a write fault at once */
	verify(p, at, 1, 0, "the copy before the stored byte");
	verify(p + at + 1, page - at - 1, 1, at + 1, "the copy behind the stored byte");
	verify(p + page, page, 1, page, "a read fault first");
	p[page + at] = ~pattern(1, page + at);	/* the copy of a page already mapped */
	verify(p + page, at, 1, page, "the second copy before the stored byte");
	verify(p + page + at + 1, page - at - 1, 1, page + at + 1, "the second copy behind it");

	fill(shared, len, 2, 0);
	CHECK(p[at] == stored, "the stored byte is lost");
	verify(p, at, 1, 0, "the copy after the file has changed");
	verify_file(fd, len, 2, 0, "the file");
}

void point_private_hole(void)
{
	int fd = create_hole("file", 2 * page);
	uint8_t *p = map_private(fd, 2 * page);
	const blkcnt_t before = blocks_of(fd);

	verify_zero(p, 2 * page, "a private mapping of a hole");
	fill(p, page, 1, 0);
	verify_zero(p + page, page, "the private page behind");
	verify(p, page, 1, 0, "the stored private page");
	CHECK(!msync(p, 2 * page, MS_SYNC), "msync: %m");
	CHECK(blocks_of(fd) == before, "private stores have allocated blocks in the hole");
	verify_file_zero(fd, 2 * page, "the file");
}

struct crew {
	pthread_barrier_t start;
	uint8_t *p;
	size_t pages;
	int fd;
	unsigned int members;
};

struct member {
	pthread_t thread;
	struct crew *crew;
	unsigned int id;
};

static void run_crew(struct crew *crew, void *(*fn)(void *arg), unsigned int members)
{
	struct member member[8];
	unsigned int i;

	CHECK(members <= ARRAY_SIZE(member), "too many threads asked for");
	crew->members = members;
	pthread_barrier_init(&crew->start, NULL, members);
	for (i = 0; i < members; i++) {
		member[i].crew = crew;
		member[i].id = i;
		CHECK(!pthread_create(&member[i].thread, NULL, fn, &member[i]),
		      "cannot start thread %u", i);
	}
	for (i = 0; i < members; i++)
		pthread_join(member[i].thread, NULL);
}

/* Stores to every page whose number is mine, and reads another's pages by read(2). */
static void *own_pages(void *arg)
{
	struct member *me = arg;
	struct crew *crew = me->crew;
	uint8_t seen[64];
	size_t i;

	pthread_barrier_wait(&crew->start);
	for (i = me->id; i < crew->pages; i += crew->members) {
		fill(crew->p + i * page, page, 2, i * page);
		get(crew->fd, seen, sizeof(seen), i * page + 100);
		verify(seen, sizeof(seen), 2, i * page + 100, "read(2) among other threads");
		get(crew->fd, seen, sizeof(seen), (i + 1) % crew->pages * page);
	}
	return NULL;
}

void point_threads_own_pages(void)
{
	struct crew crew = { .pages = 256 };

	crew.fd = create_hole("file", crew.pages * page);
	crew.p = map_shared(crew.fd, crew.pages * page);
	run_crew(&crew, own_pages, 8);
	verify(crew.p, crew.pages * page, 2, 0, "loads after all threads");
	verify_file(crew.fd, crew.pages * page, 2, 0, "the file after all threads");
}

/* All threads fault on the same page at the same time; each stores its own word. */
static void *same_page(void *arg)
{
	struct member *me = arg;
	struct crew *crew = me->crew;
	size_t i;

	for (i = 0; i < crew->pages; i++) {
		volatile uint32_t *word = (uint32_t *)(crew->p + i * page) + me->id;

		pthread_barrier_wait(&crew->start);
		if ((me->id + i) % 3 == 0)	/* some come by a read fault */
			CHECK(!*word, "a word of a hole is not zero");
		*word = i * 16 + me->id + 1;
	}
	return NULL;
}

void point_fault_race(void)
{
	struct crew crew = { .pages = 64 };
	uint8_t *seen = aligned_buffer(page);
	const uint32_t *word = (const uint32_t *)seen;
	unsigned int id;
	size_t i;

	crew.fd = create_hole("file", crew.pages * page);
	crew.p = map_shared(crew.fd, crew.pages * page);
	run_crew(&crew, same_page, 4);
	for (i = 0; i < crew.pages; i++) {
		get(crew.fd, seen, page, i * page);
		for (id = 0; id < 4; id++)
			CHECK(word[id] == i * 16 + id + 1,
			      "page %zu: thread %u's word is %u, expected %zu", i, id, word[id],
			      i * 16 + id + 1);
		verify_zero(seen + 16, page - 16, "the rest of a page that was raced for");
		CHECK(!memcmp(crew.p + i * page, seen, page),
		      "page %zu: the mapping is not what read(2) gives", i);
	}
}

static void race_process(void *arg)
{
	struct pair *pair = arg;
	const size_t pages = pair->len / page;
	volatile uint32_t *gate = (uint32_t *)(pair->p + pair->len - page);
	unsigned int id = __atomic_fetch_add(gate, 1, __ATOMIC_SEQ_CST);
	size_t i;

	while (*gate < 4)
		sched_yield();
	for (i = 0; i < pages - 1; i++)
		((volatile uint32_t *)(pair->p + i * page))[id * 8] = i + id + 1;
}

void point_fault_race_processes(void)
{
	struct pair pair = { .len = 65 * page };
	unsigned int id;
	pid_t child[4];
	uint32_t seen;
	size_t i;

	pair.fd = create_hole("file", pair.len);
	pair.p = map_shared(pair.fd, pair.len);
	for (id = 0; id < 4; id++)
		child[id] = start(race_process, &pair);
	for (id = 0; id < 4; id++)
		join(child[id]);
	for (i = 0; i < pair.len / page - 1; i++) {
		for (id = 0; id < 4; id++) {
			get(pair.fd, &seen, sizeof(seen), i * page + id * 32);
			CHECK(seen == i + id + 1, "page %zu: process %u's word is %u", i, id,
			      seen);
		}
	}
}

/* Private copies of the same pages made by four threads at once. */
static void *copy_same_page(void *arg)
{
	struct member *me = arg;
	struct crew *crew = me->crew;
	size_t i;

	for (i = 0; i < crew->pages; i++) {
		pthread_barrier_wait(&crew->start);
		crew->p[i * page + me->id] = 0xc0 + me->id;
	}
	return NULL;
}

void point_private_copy_race(void)
{
	struct crew crew = { .pages = 64 };
	unsigned int id;
	size_t i;

	crew.fd = create_filled("file", crew.pages * page, 1);
	crew.p = map_private(crew.fd, crew.pages * page);
	run_crew(&crew, copy_same_page, 4);
	for (i = 0; i < crew.pages; i++) {
		for (id = 0; id < 4; id++)
			CHECK(crew.p[i * page + id] == 0xc0 + id,
			      "page %zu: thread %u's byte is lost", i, id);
		verify(crew.p + i * page + 4, page - 4, 1, i * page + 4, "the rest of a copy");
	}
	verify_file(crew.fd, crew.pages * page, 1, 0, "the file");
}
