/* load SERVER SLOW SUFFIX RATE DENIED: what a busy workload does, until its input ends; then it tells, as JSON,
 * how often something went wrong; when and what, it says on stderr. All at once, in threads:
 *
 *   names     RATE fresh names a second (n0.SUFFIX, n1.SUFFIX, ...), each asked for, half of them from one
 *             socket that stays open, and at once connected to (TCP 9) or sent to (UDP 7, which echoes); every
 *             fourth time, what was asked for two seconds ago is sent to as well
 *   slow      twenty names a second (s0.SUFFIX, ...) of the server SLOW, which takes its time to answer
 *   held      100 connections (TCP 7), 50 connected datagram sockets and 50 that go to two peers in turn, all
 *             to addresses of held.SUFFIX and other.SUFFIX that were asked for at first, each used now and then
 *   inside    a server: what comes in on TCP 8080 or UDP 8081 is sent back
 *   denied    tries the address DENIED by TCP and UDP, again and again; it must get EPERM
 *
 * At the end held.SUFFIX is tried anew: that must be refused, since its grant ran out long ago.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LATE 1.6

enum { STREAMS = 100, CONNECTED = 50, WANDERING = 50, HELD = STREAMS + CONNECTED + WANDERING };

static atomic_long names, unanswered, failed, retransmitted, lost, held_used, held_failed;
static atomic_long slowly_answered, late, served, serve_failed, denied_tried, denied_passed;
static atomic_int done;
static struct sockaddr_in resolver, slow, denied;
static const char *suffix;
static double rate, started;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void rest(double seconds)
{
	if (seconds > 0)
		usleep(seconds * 1e6);
}

static void note(atomic_long *what, const char *words, long number)
{
	fprintf(stderr, "%.2f s: %s %ld: %s\n", now() - started, words, number, strerror(errno));
	(*what)++;
}

static struct sockaddr_in address_of(const char *text, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

	inet_pton(AF_INET, text, &address.sin_addr);
	return address;
}

static int open_socket(int type)
{
	struct timeval limit = {.tv_sec = 5};
	int sock = socket(AF_INET, type, 0);

	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return sock;
}

static void close_at_once(int sock)
{
	struct linger at_once = {.l_onoff = 1};

	setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(sock);
}

static int put_name(unsigned char *to, const char *name)
{
	int at = 0;

	while (*name) {
		int length = strchrnul(name, '.') - name;

		to[at++] = length;
		memcpy(to + at, name, length);
		at += length;
		name += length + (name[length] == '.');
	}
	to[at++] = 0;
	return at;
}

/* A question for an A record; its length. */
static int put_question(unsigned char *message, const char *label, unsigned id)
{
	unsigned char head[12] = {id >> 8, id, 1, 0, 0, 1};
	char name[256];
	int length;

	snprintf(name, sizeof(name), "%s.%s", label, suffix);
	memcpy(message, head, 12);
	length = 12 + put_name(message + 12, name);
	memcpy(message + length, "\0\1\0\1", 4);
	return length + 4;
}

/* The address of the first record; answers to questions that were given up are skipped. */
static int ask(int sock, const char *label, unsigned id, struct sockaddr_in *address)
{
	unsigned char message[512], answer[512];
	int length = put_question(message, label, id), got;

	if (send(sock, message, length, 0) != length)
		return -1;
	do {
		got = recv(sock, answer, sizeof(answer), 0);
	} while (got >= 2 && memcmp(answer, message, 2));
	if (got < length + 16 || answer[7] == 0)
		return -1;
	address->sin_family = AF_INET;
	memcpy(&address->sin_addr, answer + length + 12, 4);
	return 0;
}

static int to_server(const struct sockaddr_in *server)
{
	int sock = open_socket(SOCK_DGRAM);

	connect(sock, (void *)server, sizeof(*server));
	return sock;
}

static void try_connection(struct sockaddr_in to, long number)
{
	int sock = open_socket(SOCK_STREAM);
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);

	to.sin_port = htons(9);
	if (connect(sock, (void *)&to, sizeof(to)))
		note(&failed, "connection", number);
	getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size);
	if (info.tcpi_total_retrans)
		note(&retransmitted, "first segment lost", number);
	close_at_once(sock);
}

static void try_datagram(struct sockaddr_in to, const char *words, long number)
{
	int sock = open_socket(SOCK_DGRAM);
	char byte;

	to.sin_port = htons(7);
	if (sendto(sock, "x", 1, 0, (void *)&to, sizeof(to)) != 1)
		note(&failed, words, number);
	else if (recv(sock, &byte, 1, 0) != 1)
		note(&lost, words, number);
	close(sock);
}

static void *ask_for_names(void *which)
{
	struct sockaddr_in before[1024] = {0};   /* of both threads' names */
	int kept = to_server(&resolver);
	double next = now();

	for (long i = (long)which; !done; i += 2) {
		struct sockaddr_in address = {0}, *earlier = &before[i & 1023];
		int sock = which ? kept : to_server(&resolver);
		char label[32];

		rest(next - now());
		next = (next < now() - 0.1 ? now() : next) + 2 / rate;   /* what was missed is not made up for */
		snprintf(label, sizeof(label), "n%ld", i % 32768);
		names++;
		if (ask(sock, label, i & 0xffff, &address))
			note(&unanswered, "question", i);
		else if (i & 2)
			try_connection(address, i);
		else
			try_datagram(address, "name", i);
		if (sock != kept)
			close(sock);
		if ((i & 6) == 0 && earlier->sin_family)
			try_datagram(*earlier, "earlier name", i);
		*earlier = address;
	}
	close(kept);
	return NULL;
}

/* An answer that takes longer than LATE may find its question gone: of one workload 1024 are kept open, which
 * at 500 a second is two seconds. */
static void *ask_slowly(void *unused)
{
	struct timeval a_twentieth = {.tv_usec = 50000};
	static double asked[65536];
	int sock = to_server(&slow);

	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &a_twentieth, sizeof(a_twentieth));
	for (long i = 0; !done;) {
		struct sockaddr_in address = {.sin_family = AF_INET};
		unsigned char message[512];
		int got, number;
		char label[32];

		if (started + i / 20.0 < now()) {
			asked[i & 0xffff] = now();
			snprintf(label, sizeof(label), "s%ld", i % 32768);
			got = put_question(message, label, i & 0xffff);
			if (send(sock, message, got, 0) != got)
				note(&failed, "slow question", i);
			i++;
		}
		got = recv(sock, message, sizeof(message), 0);
		if (got < 28)
			continue;
		number = message[0] << 8 | message[1];
		if (now() - asked[number] > LATE) {
			late++;
			continue;
		}
		slowly_answered++;
		memcpy(&address.sin_addr, message + got - 4, 4);   /* the only record is the last */
		try_datagram(address, "slow name", number);
	}
	close(sock);
	return unused;
}

static int held[HELD];
static struct sockaddr_in peers[2];

/* A byte there and back; else what went wrong. */
static const char *exchange(int i, int peer)
{
	struct sockaddr_in *to = i >= STREAMS + CONNECTED ? &peers[peer] : NULL;
	char byte;

	if (sendto(held[i], "x", 1, MSG_NOSIGNAL, (void *)to, to ? sizeof(*to) : 0) != 1)
		return "sending by a held socket";
	return recv(held[i], &byte, 1, 0) == 1 ? NULL : "receiving by a held socket";
}

static void open_held(void)
{
	int sock = to_server(&resolver);

	for (int i = 0; i < HELD; i++) {
		if (ask(sock, "held", 2 * i, &peers[0]) || ask(sock, "other", 2 * i + 1, &peers[1]))
			exit(3);
		held[i] = open_socket(i < STREAMS ? SOCK_STREAM : SOCK_DGRAM);
		peers[0].sin_port = peers[1].sin_port = htons(7);
		if (i < STREAMS + CONNECTED && connect(held[i], (void *)&peers[0], sizeof(peers[0])))
			exit(4);
		for (long peer = 0; peer <= (i >= STREAMS + CONNECTED); peer++)
			if (exchange(i, peer))
				exit(5);
	}
	close(sock);
}

static void *use_held(void *unused)
{
	for (long i = 0; !done; i++) {
		const char *wrong = exchange(i % HELD, i / HELD & 1);

		held_used++;
		if (wrong)
			note(&held_failed, wrong, i % HELD);
		rest(0.002);
	}
	return unused;
}

static void *serve_one(void *which)
{
	int sock = (long)which;
	char byte;

	if (recv(sock, &byte, 1, 0) == 1 && send(sock, &byte, 1, MSG_NOSIGNAL) != 1)
		note(&serve_failed, "answering a connection", served);
	served++;
	recv(sock, &byte, 1, 0);
	close(sock);
	return NULL;
}

/* Before anybody is told that we have started. */
static int bound(int kind, int port)
{
	struct sockaddr_in here = address_of("0.0.0.0", port);
	int sock = open_socket(kind);

	if (bind(sock, (void *)&here, sizeof(here)) || (kind == SOCK_STREAM && listen(sock, 128)))
		exit(6);
	return sock;
}

static void *serve_streams(void *listening)
{
	int listener = (long)listening;

	while (!done) {
		int sock = accept(listener, NULL, NULL);
		struct timeval limit = {.tv_sec = 10};
		pthread_t thread;

		if (sock < 0)
			continue;
		setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
		pthread_create(&thread, NULL, serve_one, (void *)(long)sock);
		pthread_detach(thread);
	}
	return NULL;
}

static void *serve_datagrams(void *listening)
{
	int sock = (long)listening;
	struct sockaddr_in from;
	char byte;

	while (!done) {
		socklen_t size = sizeof(from);

		if (recvfrom(sock, &byte, 1, 0, (void *)&from, &size) != 1)
			continue;
		if (sendto(sock, &byte, 1, 0, (void *)&from, size) != 1)
			note(&serve_failed, "answering a datagram", served);
		served++;
	}
	return NULL;
}

static void *try_denied(void *unused)
{
	while (!done) {
		int stream = open_socket(SOCK_STREAM), datagram = open_socket(SOCK_DGRAM);

		denied_tried += 2;
		if (!connect(stream, (void *)&denied, sizeof(denied)) || errno != EPERM)
			note(&denied_passed, "denied connection", denied_tried);
		if (sendto(datagram, "x", 1, 0, (void *)&denied, sizeof(denied)) >= 0 || errno != EPERM)
			note(&denied_passed, "denied datagram", denied_tried);
		close_at_once(stream);
		close(datagram);
		rest(0.002);
	}
	return unused;
}

static int is_refused(struct sockaddr_in to)
{
	int sock = open_socket(SOCK_STREAM);

	return connect(sock, (void *)&to, sizeof(to)) && errno == EPERM;
}

int main(int words, char **word)
{
	void *(*tasks[])(void *) = {ask_for_names, ask_for_names, ask_slowly,      use_held,
				    serve_streams, serve_datagrams, try_denied};
	long given[7] = {0, 1}; /* two ask for names, each for every other one */
	pthread_t threads[7];
	char byte;

	if (words != 6)
		return 2;
	resolver = address_of(word[1], 53);
	slow = address_of(word[2], 53);
	suffix = word[3];
	rate = atof(word[4]);
	denied = address_of(word[5], 9);
	open_held();
	given[4] = bound(SOCK_STREAM, 8080);
	given[5] = bound(SOCK_DGRAM, 8081);
	started = now();
	for (int i = 0; i < 7; i++)
		pthread_create(&threads[i], NULL, tasks[i], (void *)given[i]);
	puts("started");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	done = 1;
	for (int i = 0; i < 7; i++)
		pthread_join(threads[i], NULL);
	printf("{\"names\": %ld, \"seconds\": %.1f, \"unanswered\": %ld, \"failed\": %ld, \"retransmitted\": %ld, "
	       "\"lost\": %ld, \"held_used\": %ld, \"held_failed\": %ld, \"served\": %ld, \"serve_failed\": %ld, "
	       "\"denied_tried\": %ld, \"denied_passed\": %ld, \"slowly_answered\": %ld, \"late\": %ld, \"expired\": %d}\n",
	       names, now() - started, unanswered, failed, retransmitted, lost, held_used, held_failed, served,
	       serve_failed, denied_tried, denied_passed, slowly_answered, late, is_refused(peers[0]));
	return 0;
}
