/*
 * Functions of libc.so.6 and libm.so.6 whose newest version glibc 2.17 has not: `ld --wrap` leads calls here, and here the oldest
 * version is called, which every glibc has. OLDEST is the name of that.
 */
#define OLD(function) __asm__(".symver oldest_" #function ", " #function "@" OLDEST)

OLD(__libc_start_main);
OLD(log);
OLD(pow);

double oldest_log(double);
double oldest_pow(double, double);

double __wrap_log(double x) {
  return oldest_log(x);
}

double __wrap_pow(double x, double y) {
  return oldest_pow(x, y);
}

/*
 * A program of a glibc from 2.34 on leaves it to __libc_start_main to call its constructors; an older one expects a program to bring
 * the function that does.
 */
typedef int main_function(int, char **, char **);
typedef void constructor(int, char **, char **);

extern constructor *__preinit_array_start[] __attribute__((visibility("hidden")));
extern constructor *__preinit_array_end[] __attribute__((visibility("hidden")));
extern constructor *__init_array_start[] __attribute__((visibility("hidden")));
extern constructor *__init_array_end[] __attribute__((visibility("hidden")));
extern void _init(void);

int oldest___libc_start_main(main_function *, int, char **, constructor *, void (*)(void), void (*)(void), void *);

static void call_all(constructor **first, constructor **end, int argc, char **argv, char **environment) {
  for (; first < end; first++) {
    (*first)(argc, argv, environment);
  }
}

static void initialize(int argc, char **argv, char **environment) {
  call_all(__preinit_array_start, __preinit_array_end, argc, argv, environment);
  _init();
  call_all(__init_array_start, __init_array_end, argc, argv, environment);
}

/* Destructors are the dynamic linker's, whose function is rtld_fini, in each version. */
int __wrap___libc_start_main(main_function *main, int argc, char **argv, constructor *init, void (*fini)(void), void (*rtld_fini)(void), void *stack) {
  (void)init;
  (void)fini;
  return oldest___libc_start_main(main, argc, argv, initialize, 0, rtld_fini, stack);
}
