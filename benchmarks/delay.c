/* A TCP proxy on 127.0.0.1 that passes everything on a fixed time after it came, in both directions.

   usage: delay HOST PORT MICROSECONDS

   Prints the port it listens on, and ends when its standard input does. One thread, epoll, and one queue: the
   delay is the same for all, so what came first is due first. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024 };

struct queue {
    struct chunk *first, **last;
};

struct side { /* of a connection; what epoll gives back. Never freed: epoll may still tell of it. */
    struct side *other;
    int fd;             /* -1 when closed */
    int listening;      /* whether it may still send something */
    struct queue stuck; /* what is due, but its reader is slow */
};

struct chunk {
    struct chunk *next;
    struct side *to;
    int64_t due;
    ssize_t length, written; /* length 0: the other side has ended */
    char data[];
};

static struct queue waiting = {NULL, &waiting.first};
static int epoll, timer;
static int64_t delay;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void arm(int64_t due) {
    struct itimerspec when = {.it_value = {due / 1000000000LL, due % 1000000000LL}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void push(struct queue *queue, struct chunk *chunk) {
    chunk->next = NULL;
    *queue->last = chunk;
    queue->last = &chunk->next;
}

static void pop(struct queue *queue) {
    struct chunk *chunk = queue->first;
    queue->first = chunk->next;
    if (!queue->first) queue->last = &queue->first;
}

static void drop(struct side *side) {
    for (int i = 0; i < 2; i++, side = side->other) {
        if (side->fd >= 0) close(side->fd);
        side->fd = -1;
        while (side->stuck.first) {
            struct chunk *chunk = side->stuck.first;
            pop(&side->stuck);
            free(chunk);
        }
    }
}

static void listen_for(struct side *side) {
    int events = (side->listening ? EPOLLIN : 0) | (side->stuck.first ? EPOLLOUT : 0);
    struct epoll_event event = {.events = events, .data.ptr = side};
    if (side->fd >= 0) epoll_ctl(epoll, EPOLL_CTL_MOD, side->fd, &event);
}

/* Sends what it can. Returns 1 when the chunk is done with, 0 when the reader is slow. */
static int deliver(struct chunk *chunk) {
    struct side *to = chunk->to;
    while (to->fd >= 0 && chunk->written < chunk->length) {
        ssize_t sent = send(to->fd, chunk->data + chunk->written, chunk->length - chunk->written, MSG_NOSIGNAL);
        if (sent >= 0) {
            chunk->written += sent;
        } else if (errno == EAGAIN) {
            return 0;
        } else {
            drop(to);
        }
    }
    if (to->fd >= 0 && chunk->length == 0) {
        shutdown(to->fd, SHUT_WR);
        if (!to->listening) drop(to);
    }
    free(chunk);
    return 1;
}

static void pass_on(void) {
    while (waiting.first && waiting.first->due <= now()) {
        struct chunk *chunk = waiting.first;
        struct side *to = chunk->to;
        pop(&waiting);
        if (to->stuck.first) {
            push(&to->stuck, chunk);
        } else if (!deliver(chunk)) {
            push(&to->stuck, chunk);
            listen_for(to);
        }
    }
    if (waiting.first) arm(waiting.first->due);
}

static void unstick(struct side *side) {
    while (side->fd >= 0 && side->stuck.first) {
        struct chunk *chunk = side->stuck.first;
        pop(&side->stuck);
        if (!deliver(chunk)) { /* back to where it was */
            chunk->next = side->stuck.first;
            if (!chunk->next) side->stuck.last = &chunk->next;
            side->stuck.first = chunk;
            return;
        }
    }
    listen_for(side);
}

static void take(struct side *side) {
    static char buffer[CHUNK];
    ssize_t length = recv(side->fd, buffer, CHUNK, 0);
    if (length < 0) {
        if (errno != EAGAIN) drop(side);
        return;
    }
    struct chunk *chunk = malloc(sizeof *chunk + length);
    chunk->to = side->other;
    chunk->due = now() + delay;
    chunk->length = length;
    chunk->written = 0;
    memcpy(chunk->data, buffer, length);
    if (!waiting.first) arm(chunk->due);
    push(&waiting, chunk);
    if (length == 0) {
        side->listening = 0;
        listen_for(side);
    }
}

static void welcome(int listener, const struct sockaddr_in *target) {
    int fd[2] = {accept(listener, NULL, NULL), socket(AF_INET, SOCK_STREAM, 0)}, one = 1;
    if (fd[0] < 0 || connect(fd[1], (const struct sockaddr *)target, sizeof *target)) {
        if (fd[0] >= 0) close(fd[0]);
        close(fd[1]);
        return;
    }
    struct side *sides = calloc(2, sizeof *sides);
    for (int i = 0; i < 2; i++) {
        sides[i] = (struct side){.other = &sides[!i], .fd = fd[i], .listening = 1};
        sides[i].stuck.last = &sides[i].stuck.first;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &sides[i]};
        fcntl(fd[i], F_SETFL, O_NONBLOCK);
        setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd[i], &event);
    }
}

static void watch(int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2]))};
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof own;
    if (inet_pton(AF_INET, arguments[1], &target.sin_addr) != 1) return 2;
    delay = atoll(arguments[3]) * 1000;
    prctl(PR_SET_TIMERSLACK, 1);
    epoll = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), input = STDIN_FILENO;
    if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 1024)) return 1;
    getsockname(listener, (struct sockaddr *)&own, &size);
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);
    watch(listener, &listener);
    watch(timer, &timer);
    watch(input, &input);
    for (;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            void *what = events[i].data.ptr;
            if (what == &timer) {
                uint64_t expired;
                if (read(timer, &expired, sizeof expired) < 0) continue;
            } else if (what == &listener) {
                welcome(listener, &target);
            } else if (what == &input) {
                char byte;
                if (read(input, &byte, 1) <= 0) return 0;
            } else {
                struct side *side = what;
                if (side->fd >= 0 && events[i].events & EPOLLOUT) unstick(side);
                if (side->fd >= 0 && events[i].events & EPOLLERR) drop(side);
                if (side->fd >= 0 && side->listening && events[i].events & (EPOLLIN | EPOLLHUP)) take(side);
                if (side->fd >= 0 && !side->listening && events[i].events & EPOLLHUP) drop(side);
            }
        }
        pass_on();
    }
}
