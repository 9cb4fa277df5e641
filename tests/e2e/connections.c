// Load for tests: TCP connections at a given rate, an exchange of 8 bytes each, closed by reset so that ports come back.
//
//   connections serve PORT                          answers every connection with what it sent
//   connections connect ALLOWED DENIED PORT RATE    RATE connections a second to ALLOWED and one in 100 to DENIED,
//                                                   until SIGTERM; then one line of JSON with what was counted
//
// "late" are connections that needed more than LATE_MS: a SYN, or an answer, had to be sent again (1 s, 200 ms).
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MAX_OPEN 192 // at once; a machine that cannot keep up makes fewer a second, and loses none
#define LATE_MS 190
#define GIVE_UP_MS 3000
#define DENIED_MS 800
#define DENIED_OPEN 32

struct connection {
    int fd, is_denied;
    double since;
};

static struct connection open_now[MAX_OPEN];
static int count_open, denied_open, poller;
static volatile sig_atomic_t is_over;

static void stop(int number)
{
    (void)number;
    is_over = 1;
}

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void reset(int fd)
{
    struct linger linger = {1, 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    close(fd);
}

static int serve(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct epoll_event event = {.events = EPOLLIN}, events[256];

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 4096))
        return perror("serve"), 1;
    event.data.fd = listener;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    printf("ready\n");
    fflush(stdout);
    while (!is_over) {
        int count = epoll_wait(poller, events, 256, 500);

        for (int i = 0; i < count; i++) {
            char data[64];
            int fd = events[i].data.fd;
            ssize_t size;

            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    event.data.fd = fd;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                }
                continue;
            }
            size = read(fd, data, sizeof(data));
            if (size <= 0 || write(fd, data, size) != size)
                close(fd);
        }
    }
    return 0;
}

static void begin(struct in_addr address, int port, int is_denied)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return;
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) && errno != EINPROGRESS) {
        close(fd);
        return;
    }
    event.data.u32 = count_open;
    open_now[count_open++] = (struct connection){fd, is_denied, now_ms()};
    denied_open += is_denied;
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void forget(int index)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = index};

    denied_open -= open_now[index].is_denied;
    reset(open_now[index].fd);
    open_now[index] = open_now[--count_open];
    if (index < count_open)
        epoll_ctl(poller, EPOLL_CTL_MOD, open_now[index].fd, &event);
}

int main(int argc, char **argv)
{
    struct rlimit limit = {16384, 16384};
    long made = 0, late = 0, failed = 0, leaked = 0, refused = 0, begun = 0;
    struct in_addr allowed, denied;
    struct epoll_event events[512];
    double start, end = 0, rate, slowest = 0;

    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    if (argc == 3 && !strcmp(argv[1], "serve"))
        return serve(atoi(argv[2]));
    if (argc != 6 || inet_pton(AF_INET, argv[2], &allowed) != 1 || inet_pton(AF_INET, argv[3], &denied) != 1)
        return fprintf(stderr, "connections serve PORT | connect ALLOWED DENIED PORT RATE\n"), 2;
    rate = atof(argv[5]) / 1000;
    start = now_ms();
    while (!is_over || count_open) {
        double now = now_ms();
        int count;

        if (!is_over)
            end = now; // afterwards nothing is begun, and the denied ones take their time
        for (; !is_over && begun < (now - start) * rate && count_open < MAX_OPEN - 2; begun++) {
            begin(allowed, atoi(argv[4]), 0);
            if (begun % 100 == 0 && denied_open < DENIED_OPEN)
                begin(denied, atoi(argv[4]), 1);
        }
        count = epoll_wait(poller, events, 512, 1);
        for (int i = 0; i < count; i++) {
            unsigned index = events[i].data.u32;
            struct connection *one = &open_now[index];
            char data[8];

            if (index >= (unsigned)count_open)
                continue;
            if (events[i].events & (EPOLLERR | EPOLLHUP)) {
                *(one->is_denied ? &refused : &failed) += 1;
                forget(index);
            } else if (events[i].events & EPOLLIN) {
                double took = now_ms() - one->since;

                if (read(one->fd, data, sizeof(data)) == sizeof(data)) {
                    if (one->is_denied)
                        leaked++;
                    else
                        made++, late += took > LATE_MS;
                    slowest = took > slowest ? took : slowest;
                }
                forget(index);
            } else if (events[i].events & EPOLLOUT) {
                if (write(one->fd, "12345678", 8) != 8)
                    failed++;
            }
        }
        now = now_ms();
        for (int i = count_open - 1; i >= 0; i--) {
            double age = now - open_now[i].since;

            if (open_now[i].is_denied ? age > DENIED_MS : age > GIVE_UP_MS) {
                *(open_now[i].is_denied ? &refused : &failed) += 1;
                forget(i);
            }
        }
    }
    printf("{\"made\": %ld, \"late\": %ld, \"failed\": %ld, \"leaked\": %ld, \"refused\": %ld, \"seconds\": %.3f, "
           "\"slowest_ms\": %.1f}\n",
           made, late, failed, leaked, refused, (end - start) / 1e3, slowest);
    return 0;
}
