/* uring.c: has the kernel connect, or send a datagram, by io_uring instead of the system calls of sockets.
 *
 * uring connect|sendmsg ADDRESS: prints "done", EPERM, ENOSYS or another number. The request is forced to a
 * worker thread of the kernel (IOSQE_ASYNC). See io_uring(7).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Hands one request over and waits for its result. */
static int submit(const struct io_uring_sqe *request)
{
	struct io_uring_params p = {};
	int ring = syscall(SYS_io_uring_setup, 1, &p);

	if (ring < 0)
		return -ENOSYS;

	char *sq = mmap(NULL, p.sq_off.array + 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, p.cq_off.cqes + 2 * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED,
			ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *requests = mmap(NULL, sizeof(*requests), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
					     IORING_OFF_SQES);

	requests[0] = *request;
	*(unsigned *)(sq + p.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	return ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct iovec data = {.iov_base = "the secret", .iov_len = 10};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &data, .msg_iovlen = 1};
	struct io_uring_sqe request = {.flags = IOSQE_ASYNC};
	int stream, result;

	if (argc != 3 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
		return 2;
	stream = !strcmp(argv[1], "connect");
	to.sin_port = htons(stream ? 80 : 7);
	request.fd = socket(AF_INET, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
	request.opcode = stream ? IORING_OP_CONNECT : IORING_OP_SENDMSG;
	request.addr = stream ? (unsigned long)&to : (unsigned long)&message;
	if (stream)
		request.off = sizeof(to);
	else
		request.len = 1;
	result = submit(&request);
	if (result >= 0)
		puts("done");
	else if (result == -EPERM)
		puts("EPERM");
	else if (result == -ENOSYS)
		puts("ENOSYS");
	else
		printf("%d\n", result);
	return 0;
}
