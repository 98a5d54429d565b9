/* Preloaded (LD_PRELOAD), it appends every socket, connection and look-up of a name to the file $SOCKET_LOG. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  const char* path = getenv("SOCKET_LOG");
  int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
  if (file < 0) abort();
  if (write(file, line, (size_t)(length < 511 ? length : 511)) < 0) abort();
  close(file);
}

int socket(int domain, int type, int protocol) {
  note("socket %d\n", domain);
  int (*next)(int, int, int) = dlsym(RTLD_NEXT, "socket");
  return next(domain, type, protocol);
}

int connect(int file, const struct sockaddr* address, socklen_t size) {
  note("connect %d\n", address->sa_family);
  int (*next)(int, const struct sockaddr*, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return next(file, address, size);
}

int getaddrinfo(const char* name, const char* service, const struct addrinfo* hints,
                struct addrinfo** found) {
  note("getaddrinfo %s\n", name ? name : "");
  int (*next)(const char*, const char*, const struct addrinfo*, struct addrinfo**) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  return next(name, service, hints, found);
}

struct hostent* gethostbyname(const char* name) {
  note("gethostbyname %s\n", name);
  struct hostent* (*next)(const char*) = dlsym(RTLD_NEXT, "gethostbyname");
  return next(name);
}
