/*
 * A plugin of QEMU (-plugin profile.so,out=PREFIX): counts the instructions that the emulated processors execute, by the
 * address of the translated block that they are in. On SIGUSR2 it writes PREFIX.1, PREFIX.2 and so on, a block a line ("address
 * instructions instructions-per-execution"; hexadecimal, decimal, decimal), and counts from zero again. Counting takes no emulated time.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu-plugin.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

#define BUCKETS (1u << 20)

/* A block that is translated again counts on: whoever has the same address and length shares it. */
struct block {
    uint64_t address, length, executed;
    struct block *next;
};

static struct block *blocks[BUCKETS];
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;
static char prefix[4096];
static sigset_t dump_signal;

static struct block *find(uint64_t address, uint64_t length)
{
    struct block **bucket = &blocks[(address * 31 + length) % BUCKETS];
    struct block *block;

    for (block = *bucket; block; block = block->next) {
        if (block->address == address && block->length == length) {
            return block;
        }
    }

    block = calloc(1, sizeof *block);
    if (!block) {
        abort();
    }
    block->address = address;
    block->length = length;
    block->next = *bucket;
    *bucket = block;
    return block;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    uint64_t length = qemu_plugin_tb_n_insns(tb);

    pthread_mutex_lock(&blocks_lock);
    struct block *block = find(qemu_plugin_tb_vaddr(tb), length);
    pthread_mutex_unlock(&blocks_lock);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->executed, length);
}

static void dump(int number)
{
    char path[sizeof prefix + 16], unfinished[sizeof path + 4];

    snprintf(path, sizeof path, "%s.%d", prefix, number);
    snprintf(unfinished, sizeof unfinished, "%s.new", path);
    FILE *file = fopen(unfinished, "w");
    pthread_mutex_lock(&blocks_lock);
    for (unsigned i = 0; i < BUCKETS; i++) {
        for (struct block *block = blocks[i]; block; block = block->next) {
            if (block->executed && file) {
                fprintf(file, "%lx %lu %lu\n", block->address, block->executed, block->length);
            }
            block->executed = 0;
        }
    }
    pthread_mutex_unlock(&blocks_lock);
    if (file && fclose(file) == 0) {
        rename(unfinished, path);
    }
}

static void *dump_on_signal(void *unused)
{
    (void)unused;
    for (int number = 1;; number++) {
        int received;
        sigwait(&dump_signal, &received);
        dump(number);
    }
    return NULL;
}

/* Before QEMU makes its threads, which inherit the mask: the signal is for dump_on_signal alone. */
__attribute__((constructor)) static void block_signal(void)
{
    sigemptyset(&dump_signal);
    sigaddset(&dump_signal, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &dump_signal, NULL);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    pthread_t thread;

    (void)info;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) {
            snprintf(prefix, sizeof prefix, "%s", argv[i] + 4);
        }
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return prefix[0] ? pthread_create(&thread, NULL, dump_on_signal, NULL) : -1;
}
