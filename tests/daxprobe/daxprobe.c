// SPDX-License-Identifier: GPL-2.0-only
/*
 * daxprobe: shows, on the target, what a file system mounted with DAX must do and what it must
 * refuse, where xfs_io and fio cannot look. The points stand in points.def.
 *
 * Each point runs in a process of its own, in a directory of its own, under an alarm; this
 * program stays outside, so that a point which dies or hangs is a result like any other.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

enum need { DAX, EXTENTS, PERSISTENT, VOLATILE, NODAX, HUGE };

struct point {
	const char *group;
	const char *name;
	enum need need;
	const char *needs;
	const char *memory;
	const char *text;
	void (*run)(void);
};

static const struct point points[] = {
#define POINT(group, name, needs, memory, text) \
	{ #group, #name, needs, #needs, #memory, text, point_##name },
#include "points.def"
#undef POINT
};

/* What a copy of this program does for a point: see start_helper(). */
static const struct helper {
	const char *name;
	int (*run)(const long *numbers);
} helpers[] = {
	{ "victim", helper_victim },
	{ "breakpoint", helper_breakpoint },
	{ "crash", helper_crash },
	{ "lock", helper_lock },
	{ "futex", helper_futex },
};

/* How long the runner waits, after a point's alarm, for the process to be gone. */
#define GRACE_SECONDS 10

static int usage_error(const char *fmt, ...) __printf(1, 2);
static int usage_error(const char *fmt, ...)
{
	va_list args;

	fputs("daxprobe: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputs(" (see daxprobe --help)\n", stderr);
	return 2;
}

static int help(void)
{
	puts("usage: daxprobe --dir DIR [--no-dax-dir DIR] [--limit SECONDS] POINT...\n"
	     "       daxprobe --list | --describe\n"
	     "       daxprobe [--no-sync] --writer FILE COUNT | --fsync-writer FILE COUNT |\n"
	     "                            --overwrite-writer FILE COUNT | --rename-writer FILE COUNT\n"
	     "       daxprobe --check-records FILE [--acked COUNT]\n"
	     "       daxprobe --soak-file FILE SECONDS SEED | --soak-tree DIR SECONDS SEED\n"
	     "       daxprobe --no-dax-dir DIR --soak-pins DIR SECONDS SEED\n"
	     "       daxprobe --hold-pages FILE SECONDS\n"
	     "       daxprobe --aio-into FILE DEVICE | --aio-and-exit FILE DEVICE\n"
	     "\n"
	     "Runs points on files that it makes in DIR, and prints TAP; exit 0 if all are ok.\n"
	     "  --dir DIR           a directory on the file system under test\n"
	     "  --no-dax-dir DIR    one on a disk file system that knows O_DIRECT\n"
	     "  --limit SECONDS     the time that one point gets (60)\n"
	     "  --list              the names of the points\n"
	     "  --describe          group, name, needs, memory and text of each, separated by tabs\n"
	     "\n"
	     "For power cuts: a writer acknowledges each record once it must be durable; the\n"
	     "checker prints what of them a file holds.\n"
	     "  --writer            store by mmap, msync each record, then print `FILE acked N`\n"
	     "  --fsync-writer      the same by write and fsync, at the end of the file\n"
	     "  --overwrite-writer  64 places, overwritten in turn by store and by write\n"
	     "  --rename-writer     each record in a new file that takes the old one's name\n"
	     "  --no-sync           acknowledge what was not synced: a power cut must show it\n"
	     "  --check-records     prints highest, valid, torn, missing; exit 1 if any is torn or\n"
	     "                      missing, with --acked: if any of the first COUNT is not valid\n"
	     "\n"
	     "For a soak: random operations, the same for the same SEED.\n"
	     "  --soak-file         on one file and its mappings; each must see what was put there\n"
	     "  --soak-tree         on names in DIR: make, write, rename, link, remove\n"
	     "  --soak-pins         on pages in use by O_DIRECT, pipes, other processes, against\n"
	     "                      truncate, holes, fork, mremap; --no-dax-dir: on a disk\n"
	     "\n"
	     "For what waits until pages are no longer in use:\n"
	     "  --hold-pages        lends FILE's first pages to a pipe, closes FILE, says `held`, and\n"
	     "                      after SECONDS `released`; what the pipe has must be right\n"
	     "  --aio-into          reads DEVICE by aio and O_DIRECT into a mapping of FILE, says\n"
	     "                      `submitted`, and `done` when the data has arrived\n"
	     "  --aio-and-exit      the same, but exits at once");
	return 0;
}

static const struct point *find_point(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(points); i++)
		if (!strcmp(points[i].name, name))
			return &points[i];
	return NULL;
}

static bool needs_disk(const struct point *point)
{
	return point->need == NODAX || point->need == HUGE;
}

static int remove_one(const char *path, const struct stat *st __unused, int type __unused,
		      struct FTW *where __unused)
{
	return remove(path);
}

/* The point's directory; one that a killed run has left behind is removed first. */
static char *make_dir(const char *parent, const char *name)
{
	char *path;

	if (asprintf(&path, "%s/.daxprobe-%s", parent, name) < 0)
		return NULL;
	nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	if (mkdir(path, 0700)) {
		printf("# cannot make %s: %s\n", path, strerror(errno));
		free(path);
		return NULL;
	}
	return path;
}

static bool remove_dir(char *path)
{
	bool gone = true;

	if (path && nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS)) {
		printf("# cannot remove %s: %s\n", path, strerror(errno));
		gone = false;
	}
	free(path);
	return gone;
}

static void run_child(const struct point *point, unsigned int limit, int reason)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	reason_fd = reason;
	alarm(limit);
	point->run();
	_exit(0);
}

/* Prints what the point says, each line as a diagnostic; false at the end of it. */
static bool relay(int fd, bool *line_start)
{
	char text[512];
	ssize_t i, n = read(fd, text, sizeof(text));

	for (i = 0; i < n; i++) {
		if (*line_start)
			fputs("# ", stdout);
		putchar(text[i]);
		*line_start = text[i] == '\n';
	}
	return n > 0;
}

/* Waits for the point, but no longer than its limit and the grace; true if it is gone. */
static bool await(pid_t pid, int reason, unsigned int limit, int *status)
{
	const time_t deadline = now() + limit + GRACE_SECONDS;
	struct pollfd talk = { .fd = reason, .events = POLLIN };
	bool line_start = true;
	pid_t gone = 0;

	do {
		if (poll(&talk, 1, 20) > 0 && !relay(reason, &line_start))
			talk.fd = -1;	/* end of file: only the exit status is left */
		gone = waitpid(pid, status, WNOHANG);
	} while (!gone && now() < deadline);
	while (poll(&talk, 1, 0) > 0 && relay(reason, &line_start))
		;
	kill(-pid, SIGKILL);	/* children that the point did not wait for */
	return gone == pid;
}

static bool judge(const struct point *point, bool gone, int status, unsigned int limit)
{
	if (!gone)
		printf("# still not dead %u s after its limit of %u s: stuck in the kernel\n",
		       GRACE_SECONDS, limit);
	else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		printf("# not finished within %u s\n", limit);
	else if (WIFSIGNALED(status))
		printf("# the process of %s died: %s\n", point->name,
		       strsignal(WTERMSIG(status)));
	return gone && WIFEXITED(status) && !WEXITSTATUS(status);
}

static bool run_point(const struct point *point, const char *dir, const char *no_dax_dir,
		      unsigned int limit)
{
	char *mine = make_dir(dir, point->name);
	char *plain = needs_disk(point) ? make_dir(no_dax_dir, point->name) : NULL;
	bool gone, ok = mine && (plain || !needs_disk(point));
	int status = 0, reason[2];
	pid_t pid = -1;

	fflush(stdout);
	if (ok && !pipe2(reason, O_CLOEXEC)) {
		point_dir = mine;
		plain_dir = plain;
		pid = fork();
		if (!pid)
			run_child(point, limit, reason[1]);
		close(reason[1]);
	}
	if (pid > 0) {
		gone = await(pid, reason[0], limit, &status);
		ok = judge(point, gone, status, limit);
		close(reason[0]);
	} else if (ok) {
		printf("# cannot start the process: %s\n", strerror(errno));
		ok = false;
	}
	ok = remove_dir(mine) && ok;
	return remove_dir(plain) && ok;
}

static bool is_dir(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

static int run_points(int count, char **names, const char *dir, const char *no_dax_dir,
		      unsigned int limit)
{
	const struct point *point;
	bool ok, all_ok = true;
	int i;

	if (!dir)
		return usage_error("--dir is missing: the directory of the file system under test");
	if (!count)
		return usage_error("no point is named");
	if (!is_dir(dir))
		return usage_error("--dir %s is not a directory", dir);
	if (no_dax_dir && !is_dir(no_dax_dir))
		return usage_error("--no-dax-dir %s is not a directory", no_dax_dir);
	for (i = 0; i < count; i++) {
		point = find_point(names[i]);
		if (!point)
			return usage_error("there is no point %s", names[i]);
		if (needs_disk(point) && !no_dax_dir)
			return usage_error("point %s needs --no-dax-dir", names[i]);
	}

	printf("TAP version 13\n1..%d\n", count);
	for (i = 0; i < count; i++) {
		point = find_point(names[i]);
		ok = run_point(point, dir, no_dax_dir, limit);
		printf("%s %d - %s\n", ok ? "ok" : "not ok", i + 1, point->name);
		fflush(stdout);
		all_ok = all_ok && ok;
	}
	return !all_ok;
}

static int list(bool describe)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(points); i++)
		if (describe)
			printf("%s\t%s\t%s\t%s\t%s\n", points[i].group, points[i].name,
			       points[i].needs, points[i].memory, points[i].text);
		else
			puts(points[i].name);
	return 0;
}

/* A number from the command line, at least 1; 0 if it is none. */
static unsigned int number(const char *text)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || value > INT32_MAX)
		return 0;
	return value;
}

static int write_records(const char *option, const char *path, int count, char **args,
			 enum record_sync how)
{
	if (count != 1 || !number(args[0]))
		return usage_error("%s wants FILE and the number of records", option);
	return records_write(path, number(args[0]), how, true);
}

static int soak(const char *option, int (*load)(const char *, unsigned int, unsigned int),
		const char *path, int count, char **args)
{
	if (count != 2 || !number(args[0]) || !number(args[1]))
		return usage_error("%s wants a path, a number of seconds and a seed", option);
	return load(path, number(args[0]), number(args[1]));
}

static int soak_pinned(const char *dir, const char *no_dax_dir, int count, char **args)
{
	if (count != 2 || !number(args[0]) || !number(args[1]) || !no_dax_dir)
		return usage_error("--soak-pins wants a directory, a number of seconds, a seed, "
				   "and --no-dax-dir");
	return soak_pins(dir, no_dax_dir, number(args[0]), number(args[1]));
}

static int hold(const char *path, int count, char **args)
{
	if (count != 1 || !number(args[0]))
		return usage_error("--hold-pages wants FILE and a number of seconds");
	return hold_pages(path, number(args[0]));
}

static int aio(const char *option, const char *path, int count, char **args, bool stay)
{
	if (count != 1)
		return usage_error("%s wants FILE and DEVICE", option);
	return aio_into(path, args[0], stay);
}

static int help_a_point(const char *name, int count, char **args)
{
	long numbers[8] = { };
	size_t i;
	int n;

	for (n = 0; n < count && n < (int)ARRAY_SIZE(numbers); n++)
		numbers[n] = atol(args[n]);
	for (i = 0; i < ARRAY_SIZE(helpers); i++)
		if (!strcmp(helpers[i].name, name))
			return helpers[i].run(numbers);
	return usage_error("there is no helper %s", name);
}

static int check_records(const char *path, int count, unsigned int acked, bool acked_given)
{
	struct record_report report;

	if (count)
		return usage_error("--check-records wants one FILE and nothing else");
	if (records_check(path, &report))
		return 2;
	printf("highest %u valid %u torn %u missing %u first-bad %u\n", report.highest,
	       report.valid, report.torn, report.missing, report.first_bad);
	if (acked_given)
		return report.first_bad <= acked;
	return report.torn || report.missing;
}

enum option_id {
	OPT_DIR = 256, OPT_NO_DAX_DIR, OPT_LIMIT, OPT_LIST, OPT_DESCRIBE, OPT_HELP,
	OPT_WRITER, OPT_FSYNC_WRITER, OPT_OVERWRITE_WRITER, OPT_RENAME_WRITER, OPT_NO_SYNC,
	OPT_CHECK_RECORDS, OPT_ACKED, OPT_SOAK_FILE, OPT_SOAK_TREE, OPT_SOAK_PINS,
	OPT_HOLD_PAGES, OPT_AIO_INTO, OPT_AIO_AND_EXIT, OPT_SELFTEST, OPT_HELPER,
};

static const struct option options[] = {
	{ "dir", required_argument, NULL, OPT_DIR },
	{ "no-dax-dir", required_argument, NULL, OPT_NO_DAX_DIR },
	{ "limit", required_argument, NULL, OPT_LIMIT },
	{ "list", no_argument, NULL, OPT_LIST },
	{ "describe", no_argument, NULL, OPT_DESCRIBE },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "writer", required_argument, NULL, OPT_WRITER },
	{ "fsync-writer", required_argument, NULL, OPT_FSYNC_WRITER },
	{ "overwrite-writer", required_argument, NULL, OPT_OVERWRITE_WRITER },
	{ "rename-writer", required_argument, NULL, OPT_RENAME_WRITER },
	{ "no-sync", no_argument, NULL, OPT_NO_SYNC },
	{ "check-records", required_argument, NULL, OPT_CHECK_RECORDS },
	{ "acked", required_argument, NULL, OPT_ACKED },
	{ "soak-file", required_argument, NULL, OPT_SOAK_FILE },
	{ "soak-tree", required_argument, NULL, OPT_SOAK_TREE },
	{ "soak-pins", required_argument, NULL, OPT_SOAK_PINS },
	{ "hold-pages", required_argument, NULL, OPT_HOLD_PAGES },
	{ "aio-into", required_argument, NULL, OPT_AIO_INTO },
	{ "aio-and-exit", required_argument, NULL, OPT_AIO_AND_EXIT },
	{ "helper", required_argument, NULL, OPT_HELPER },	/* start_helper() */
	{ "selftest", required_argument, NULL, OPT_SELFTEST },	/* point exec_program */
	{ }
};

int main(int argc, char **argv)
{
	const char *dir = NULL, *no_dax_dir = NULL, *file = NULL;
	unsigned int limit = 60, acked = 0;
	bool acked_given = false;
	int opt, action = 0;

	page = sysconf(_SC_PAGESIZE);
	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (opt) {
		case OPT_DIR:
			dir = optarg;
			break;
		case OPT_NO_DAX_DIR:
			no_dax_dir = optarg;
			break;
		case OPT_LIMIT:
			limit = number(optarg);
			if (!limit)
				return usage_error("--limit %s is not a number of seconds", optarg);
			break;
		case OPT_ACKED:
			acked = number(optarg);
			if (!acked && strcmp(optarg, "0"))
				return usage_error("--acked %s is not a number of records", optarg);
			acked_given = true;
			break;
		case OPT_NO_SYNC:
			records_do_not_sync();
			break;
		case OPT_SELFTEST:
			return selftest(number(optarg));
		case ':':
			return usage_error("%s wants a value", argv[optind - 1]);
		case '?':
			return usage_error("unknown option %s", argv[optind - 1]);
		default:
			if (action)
				return usage_error("%s cannot be combined with another action",
						   argv[optind - 1 - !!optarg]);
			action = opt;
			file = optarg;
		}
	}
	argc -= optind;
	argv += optind;
	if (acked_given && action != OPT_CHECK_RECORDS)
		return usage_error("--acked belongs to --check-records");
	if (argc && (action == OPT_LIST || action == OPT_DESCRIBE || action == OPT_HELP))
		return usage_error("%s: too many arguments", argv[0]);

	switch (action) {
	case OPT_HELP:
		return help();
	case OPT_LIST:
	case OPT_DESCRIBE:
		return list(action == OPT_DESCRIBE);
	case OPT_WRITER:
		return write_records("--writer", file, argc, argv, BY_MSYNC);
	case OPT_FSYNC_WRITER:
		return write_records("--fsync-writer", file, argc, argv, BY_FSYNC);
	case OPT_OVERWRITE_WRITER:
		return write_records("--overwrite-writer", file, argc, argv, BY_OVERWRITE);
	case OPT_RENAME_WRITER:
		return write_records("--rename-writer", file, argc, argv, BY_RENAME);
	case OPT_SOAK_FILE:
		return soak("--soak-file", soak_file, file, argc, argv);
	case OPT_SOAK_TREE:
		return soak("--soak-tree", soak_tree, file, argc, argv);
	case OPT_SOAK_PINS:
		return soak_pinned(file, no_dax_dir, argc, argv);
	case OPT_HOLD_PAGES:
		return hold(file, argc, argv);
	case OPT_AIO_INTO:
		return aio("--aio-into", file, argc, argv, true);
	case OPT_AIO_AND_EXIT:
		return aio("--aio-and-exit", file, argc, argv, false);
	case OPT_HELPER:
		return help_a_point(file, argc, argv);
	case OPT_CHECK_RECORDS:
		return check_records(file, argc, acked, acked_given);
	default:
		return run_points(argc, argv, dir, no_dax_dir, limit);
	}
}
