/* burst SERVER SUFFIX COUNT PORT DENIED: COUNT fresh names (n0.SUFFIX, n1.SUFFIX, ...), each asked for and
 * connected to as soon as its answer is here, by TCP and by UDP. Every tenth time it tries the address DENIED
 * too, which must never be reached.
 *
 * It says "half" in the midst; at the end it tells as JSON what failed. A connection whose first SYN was lost
 * counts as `slow` (half a second or more) and as `retransmitted` (tcpi_total_retrans, tcp(7)).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int unanswered, failed, slow, retransmitted, lost_datagrams, denied_passed, denied_tried;
static double slowest;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_in address_of(const char *text, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

	inet_pton(AF_INET, text, &address.sin_addr);
	return address;
}

static int open_socket(int type)
{
	struct timeval limit = {.tv_sec = 3};
	int sock = socket(AF_INET, type, 0);

	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return sock;
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

/* The address of the first record; the answer repeats the question, then points to its name. */
static int ask(const struct sockaddr_in *server, const char *name, unsigned id, struct in_addr *address)
{
	unsigned char message[512] = {id >> 8, id, 1, 0, 0, 1}, answer[512];
	int sock = open_socket(SOCK_DGRAM), length = 12 + put_name(message + 12, name), got;

	memcpy(message + length, "\0\1\0\1", 4);
	length += 4;
	if (connect(sock, (void *)server, sizeof(*server)) || send(sock, message, length, 0) != length) {
		close(sock);
		return -1;
	}
	got = recv(sock, answer, sizeof(answer), 0);
	close(sock);
	if (got < length + 16 || answer[7] == 0)
		return -1;
	memcpy(address, answer + length + 12, 4);
	return 0;
}

static void try_datagram(struct in_addr address)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7), .sin_addr = address};
	int sock = open_socket(SOCK_DGRAM);

	lost_datagrams += sendto(sock, "x", 1, 0, (void *)&to, sizeof(to)) != 1;
	close(sock);
}

static void try_connection(struct in_addr address, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address};
	struct linger at_once = {.l_onoff = 1};
	int sock = open_socket(SOCK_STREAM);
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);
	double start = now(), took;

	if (connect(sock, (void *)&to, sizeof(to)))
		failed++;
	took = now() - start;
	slowest = took > slowest ? took : slowest;
	slow += took >= 0.5;
	getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &size);
	retransmitted += info.tcpi_total_retrans > 0;
	setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(sock);
}

static void try_denied(const struct sockaddr_in *denied)
{
	int sock = open_socket(SOCK_STREAM);

	denied_tried++;
	denied_passed += connect(sock, (void *)denied, sizeof(*denied)) == 0 || errno != EPERM;
	close(sock);
}

int main(int words, char **word)
{
	struct sockaddr_in server, denied;
	int count;

	if (words != 6)
		return 2;
	server = address_of(word[1], 53);
	denied = address_of(word[5], atoi(word[4]));
	count = atoi(word[3]);
	for (int i = 0; i < count; i++) {
		struct in_addr address;
		char name[256];

		snprintf(name, sizeof(name), "n%d.%s", i, word[2]);
		if (ask(&server, name, i & 0xffff, &address)) {
			unanswered++;
		} else {
			try_connection(address, atoi(word[4]));
			try_datagram(address);
		}
		if (i % 10 == 0)
			try_denied(&denied);
		if (i == count / 2) {
			puts("half");
			fflush(stdout);
		}
	}
	printf("{\"names\": %d, \"unanswered\": %d, \"failed\": %d, \"slow\": %d, \"retransmitted\": %d, "
	       "\"lost_datagrams\": %d, \"denied_tried\": %d, \"denied_passed\": %d, \"slowest\": %.4f}\n",
	       count, unanswered, failed, slow, retransmitted, lost_datagrams, denied_tried, denied_passed, slowest);
	return 0;
}
