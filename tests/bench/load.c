/* The load client: in C, because one in Python measures itself.
 *
 *   load serve PORT              accepts and closes, for ever
 *   load sink PORT               has a datagram socket there and reads nothing
 *   load connect ADDRESS PORT N  N connections one after the other; prints connections per second
 *   load blast ADDRESS PORT N    N datagrams of 64 bytes, connected; prints ns per datagram
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in address_of(const char *address, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	inet_pton(AF_INET, address, &to.sin_addr);
	return to;
}

static int serve(const char *port)
{
	struct sockaddr_in to = address_of("0.0.0.0", port);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&to, sizeof(to)) || listen(listener, 1024))
		fail("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int client = accept(listener, NULL, NULL);
		char byte;

		if (client < 0)
			fail("accept");
		while (read(client, &byte, 1) > 0)
			;
		close(client);
	}
}

static int sink(const char *port)
{
	struct sockaddr_in to = address_of("0.0.0.0", port);
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	if (bind(s, (struct sockaddr *)&to, sizeof(to)))
		fail("bind");
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}

static int connecting(struct sockaddr_in to, long count)
{
	struct linger reset = {1, 0};    /* or the client runs out of ports */
	double start = now();

	for (long i = 0; i < count; i++) {
		int s = socket(AF_INET, SOCK_STREAM, 0);

		if (connect(s, (struct sockaddr *)&to, sizeof(to)))
			fail("connect");
		setsockopt(s, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(s);
	}
	printf("%f\n", count / (now() - start));
	return 0;
}

static int blast(struct sockaddr_in to, long count)
{
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	char data[64] = {0};
	double start;

	if (connect(s, (struct sockaddr *)&to, sizeof(to)))
		fail("connect");
	start = now();
	for (long i = 0; i < count; i++)
		if (send(s, data, sizeof(data), 0) != sizeof(data))
			fail("send");
	printf("%f\n", (now() - start) * 1e9 / count);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "sink"))
		return sink(argv[2]);
	if (argc == 5 && !strcmp(argv[1], "connect"))
		return connecting(address_of(argv[2], argv[3]), atol(argv[4]));
	if (argc == 5 && !strcmp(argv[1], "blast"))
		return blast(address_of(argv[2], argv[3]), atol(argv[4]));
	fprintf(stderr, "usage: load serve|sink PORT | load connect|blast ADDRESS PORT N\n");
	return 2;
}
