// Request and response between pods, several pairs of them in short turns: what one pair is compared with has met the
// same machine a hundredth of a second before or after, which a second-long run of each has not.
//
//   roundtrips PORT TURNS ROUNDS EXCHANGES BYTES PAIR...   a pair: CLIENT_NAMESPACE,SERVER_NAMESPACE,SERVER_ADDRESS
//
// A turn: a new connection for every pair, then ROUNDS. A round: every pair once, who comes first moving on by one;
// EXCHANGES of BYTES there and back, one at a time, after a tenth of them that is not counted. Prints a line a turn: the
// nanoseconds of each pair's exchanges, in the order in which the pairs were given. Namespaces are paths, as in /run/netns.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define MAX_PAIRS 8
#define MAX_BYTES 4096

struct pair {
    int client_namespace, server_namespace, listener, connection;
    int64_t nanos; // of this turn's exchanges
    struct sockaddr_in server;
};

static struct pair pairs[MAX_PAIRS];
static int bytes;

static void fail(const char *what)
{
    fprintf(stderr, "roundtrips: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_namespace(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        fail(path);
    return fd;
}

static void enter(int namespace)
{
    if (setns(namespace, CLONE_NEWNET))
        fail("setns");
}

static void send_at_once(int fd)
{
    int one = 1;

    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
        fail("TCP_NODELAY");
}

static int is_whole(int fd, char *buffer)
{
    for (int have = 0; have < bytes;) {
        ssize_t got = recv(fd, buffer + have, bytes - have, 0);

        if (got <= 0)
            return 0;
        have += got;
    }
    return 1;
}

// A thread of the server's for each pair: one connection after the other, each answered until its end.
static void *serve(void *argument)
{
    struct pair *pair = argument;
    char buffer[MAX_BYTES];

    for (;;) {
        int fd = accept(pair->listener, NULL, NULL);

        if (fd < 0)
            fail("accept");
        send_at_once(fd);
        while (is_whole(fd, buffer))
            if (send(fd, buffer, bytes, MSG_NOSIGNAL) != bytes)
                break;
        close(fd);
    }
    return NULL;
}

static void exchange(int fd, char *buffer, int times)
{
    for (int i = 0; i < times; i++)
        if (send(fd, buffer, bytes, MSG_NOSIGNAL) != bytes || !is_whole(fd, buffer))
            fail("exchange");
}

static void open_connection(struct pair *pair)
{
    enter(pair->client_namespace);
    pair->connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (pair->connection < 0 || connect(pair->connection, (const struct sockaddr *)&pair->server, sizeof(pair->server)))
        fail("connect");
    send_at_once(pair->connection);
    pair->nanos = 0;
}

static void close_connection(struct pair *pair)
{
    struct linger at_once = {1, 0};

    setsockopt(pair->connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(pair->connection);
}

static void measure(struct pair *pair, int exchanges)
{
    struct timespec before, after;
    char buffer[MAX_BYTES] = "";

    exchange(pair->connection, buffer, exchanges / 10 + 1);
    clock_gettime(CLOCK_MONOTONIC, &before);
    exchange(pair->connection, buffer, exchanges);
    clock_gettime(CLOCK_MONOTONIC, &after);
    pair->nanos += (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
}

static void listen_for(struct pair *pair)
{
    enter(pair->server_namespace);
    pair->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (pair->listener < 0 || bind(pair->listener, (struct sockaddr *)&pair->server, sizeof(pair->server)) ||
        listen(pair->listener, 8))
        fail("listen");
}

static void start_servers(int count)
{
    pthread_t thread;
    pid_t parent = getpid();

    for (int i = 0; i < count; i++)
        listen_for(&pairs[i]);
    if (fork())
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        exit(1);
    for (int i = 0; i < count; i++)
        if (pthread_create(&thread, NULL, serve, &pairs[i]))
            fail("pthread_create");
    for (;;)
        pause();
}

static void read_pair(struct pair *pair, char *text, int port)
{
    char *client = strtok(text, ","), *server = strtok(NULL, ","), *address = strtok(NULL, ",");

    pair->server.sin_family = AF_INET;
    pair->server.sin_port = htons(port);
    if (!address || inet_pton(AF_INET, address, &pair->server.sin_addr) != 1) {
        fprintf(stderr, "roundtrips: %s: a pair is CLIENT_NAMESPACE,SERVER_NAMESPACE,SERVER_ADDRESS\n", text);
        exit(2);
    }
    pair->client_namespace = open_namespace(client);
    pair->server_namespace = open_namespace(server);
}

static void take_turn(int pair_count, int rounds, int exchanges)
{
    for (int i = 0; i < pair_count; i++)
        open_connection(&pairs[i]);
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < pair_count; i++)
            measure(&pairs[(round + i) % pair_count], exchanges);
    for (int i = 0; i < pair_count; i++) {
        close_connection(&pairs[i]);
        printf("%lld%c", (long long)pairs[i].nanos, i + 1 < pair_count ? ' ' : '\n');
    }
}

int main(int count, char **given)
{
    int pair_count = count - 6, port, turns, rounds, exchanges;

    if (pair_count < 1 || pair_count > MAX_PAIRS) {
        fprintf(stderr, "usage: roundtrips PORT TURNS ROUNDS EXCHANGES BYTES PAIR...\n");
        return 2;
    }
    port = atoi(given[1]), turns = atoi(given[2]), rounds = atoi(given[3]), exchanges = atoi(given[4]);
    bytes = atoi(given[5]);
    if (port < 1 || turns < 1 || rounds < 1 || exchanges < 1 || bytes < 1 || bytes > MAX_BYTES) {
        fprintf(stderr, "roundtrips: PORT, TURNS, ROUNDS and EXCHANGES are 1 or more, BYTES 1 to %d\n", MAX_BYTES);
        return 2;
    }
    for (int i = 0; i < pair_count; i++)
        read_pair(&pairs[i], given[6 + i], port);
    start_servers(pair_count);
    for (int turn = 0; turn < turns; turn++)
        take_turn(pair_count, rounds, exchanges);
    return 0;
}
