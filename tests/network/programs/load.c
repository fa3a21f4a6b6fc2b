/* load SERVER SUFFIX RATE DENIED: what a busy workload does, until its input ends; then it tells, as JSON, what
 * went wrong. All at once, in threads:
 *
 *   names     RATE fresh names a second (n0.SUFFIX, n1.SUFFIX, ...), each asked for, half of them from one
 *             socket that stays open, and at once connected to (TCP 9) or sent to (UDP 7, which echoes)
 *   held      100 connections (TCP 7), 50 connected datagram sockets and 50 that go to two peers in turn, all
 *             to addresses of held.SUFFIX and other.SUFFIX that were asked for once, each used now and then
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

enum { STREAMS = 100, CONNECTED = 50, WANDERING = 50, HELD = STREAMS + CONNECTED + WANDERING };

static atomic_long names, unanswered, failed, retransmitted, lost, held_used, held_failed;
static atomic_long served, serve_failed, denied_tried, denied_passed;
static atomic_int done;
static char first_failure[128];
static struct sockaddr_in resolver, denied;
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
	int error = errno;

	if (!first_failure[0])
		snprintf(first_failure, sizeof(first_failure), "%s %ld: %s, after %.2f s", words, number,
			 strerror(error), now() - started);
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
	int sock = socket(AF_INET, type, 0), on = 1;

	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
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

/* The address of the first record; answers to questions that were given up are skipped. */
static int ask(int sock, const char *label, unsigned id, struct sockaddr_in *address)
{
	unsigned char message[512] = {id >> 8, id, 1, 0, 0, 1}, answer[512];
	char name[256];
	int length, got;

	snprintf(name, sizeof(name), "%s.%s", label, suffix);
	length = 12 + put_name(message + 12, name);
	memcpy(message + length, "\0\1\0\1", 4);
	length += 4;
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

static int to_resolver(void)
{
	int sock = open_socket(SOCK_DGRAM);

	connect(sock, (void *)&resolver, sizeof(resolver));
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

static void try_datagram(struct sockaddr_in to, long number)
{
	int sock = open_socket(SOCK_DGRAM);
	char byte;

	to.sin_port = htons(7);
	if (sendto(sock, "x", 1, 0, (void *)&to, sizeof(to)) != 1)
		note(&failed, "datagram", number);
	else if (recv(sock, &byte, 1, 0) != 1)
		note(&lost, "echo", number);
	close(sock);
}

static void *ask_for_names(void *which)
{
	int kept = to_resolver();

	for (long i = (long)which; !done; i += 2) {
		struct sockaddr_in address = {0};
		int sock = which ? kept : to_resolver();
		char label[32];

		rest(started + i / rate - now());
		snprintf(label, sizeof(label), "n%ld", i % 65536);
		names++;
		if (ask(sock, label, i & 0xffff, &address))
			note(&unanswered, "question", i);
		else if (i & 2)
			try_connection(address, i);
		else
			try_datagram(address, i);
		if (sock != kept)
			close(sock);
	}
	close(kept);
	return NULL;
}

static int held[HELD];
static struct sockaddr_in peers[2];

static void open_held(void)
{
	int sock = to_resolver();

	if (ask(sock, "held", 1, &peers[0]) || ask(sock, "other", 2, &peers[1]))
		exit(3);
	close(sock);
	for (int i = 0; i < HELD; i++) {
		held[i] = open_socket(i < STREAMS ? SOCK_STREAM : SOCK_DGRAM);
		peers[0].sin_port = peers[1].sin_port = htons(7);
		if (i < STREAMS + CONNECTED && connect(held[i], (void *)&peers[0], sizeof(peers[0])))
			exit(4);
		if (i >= STREAMS + CONNECTED)
			for (int j = 0; j < 2; j++)
				sendto(held[i], "x", 1, 0, (void *)&peers[j], sizeof(peers[j]));
		if (i >= STREAMS + CONNECTED)
			for (char j = 0; j < 2; j++)
				if (recv(held[i], &(char){0}, 1, 0) != 1)
					exit(5);
	}
}

static void *use_held(void *unused)
{
	for (long i = 0; !done; i++) {
		struct sockaddr_in *to = &peers[i / HELD & 1];
		int sock = held[i % HELD], wanders = i % HELD >= STREAMS + CONNECTED;
		char byte;

		held_used++;
		if (sendto(sock, "x", 1, MSG_NOSIGNAL, wanders ? (void *)to : NULL, wanders ? sizeof(*to) : 0) != 1)
			note(&held_failed, "held, sending", i % HELD);
		else if (recv(sock, &byte, 1, 0) != 1)
			note(&held_failed, "held, receiving", i % HELD);
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

static void *serve_streams(void *unused)
{
	struct sockaddr_in here = address_of("0.0.0.0", 8080);
	int listener = open_socket(SOCK_STREAM);

	if (bind(listener, (void *)&here, sizeof(here)) || listen(listener, 128))
		exit(6);
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
	return unused;
}

static void *serve_datagrams(void *unused)
{
	struct sockaddr_in here = address_of("0.0.0.0", 8081), from;
	int sock = open_socket(SOCK_DGRAM);
	char byte;

	if (bind(sock, (void *)&here, sizeof(here)))
		exit(7);
	while (!done) {
		socklen_t size = sizeof(from);

		if (recvfrom(sock, &byte, 1, 0, (void *)&from, &size) != 1)
			continue;
		if (sendto(sock, &byte, 1, 0, (void *)&from, size) != 1)
			note(&serve_failed, "answering a datagram", served);
		served++;
	}
	return unused;
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
	void *(*tasks[])(void *) = {ask_for_names, ask_for_names, use_held, serve_streams, serve_datagrams, try_denied};
	pthread_t threads[6];
	char byte;

	if (words != 5)
		return 2;
	resolver = address_of(word[1], 53);
	suffix = word[2];
	rate = atof(word[3]);
	denied = address_of(word[4], 9);
	open_held();
	started = now();
	for (long i = 0; i < 6; i++)
		pthread_create(&threads[i], NULL, tasks[i], (void *)(long)(i == 1));
	puts("started");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	done = 1;
	for (int i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	printf("{\"names\": %ld, \"seconds\": %.1f, \"unanswered\": %ld, \"failed\": %ld, \"retransmitted\": %ld, "
	       "\"lost\": %ld, \"held_used\": %ld, \"held_failed\": %ld, \"served\": %ld, \"serve_failed\": %ld, "
	       "\"denied_tried\": %ld, \"denied_passed\": %ld, \"expired\": %d, \"first_failure\": \"%s\"}\n",
	       names, now() - started, unanswered, failed, retransmitted, lost, held_used, held_failed, served,
	       serve_failed, denied_tried, denied_passed, is_refused(peers[0]), first_failure);
	return 0;
}
