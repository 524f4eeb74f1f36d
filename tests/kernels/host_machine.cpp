// The machine that "host_port.h" asks: runs the blocks of a grid, each CUDA thread a fiber with a stack.
//
// A fiber runs until it waits, ends or (under a seed) loses its turn; then the first of those that are ready
// is switched to, see `turn`. Blocks are resident together where they may wait for each other, which is in a
// cluster and in a cooperative grid; otherwise they run one after another. Whatever is wrong ends the launch:
// control goes back to the caller, and the fibers stay where they stand.

#include "host_launch.h"
#include "host_port.h"

#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <unordered_set>
#include <vector>

#ifdef BNFOLD_SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Changing stacks: a few instructions on x86-64, which keep what the ABI says that a call keeps (no kernel
// changes the rounding mode); elsewhere ucontext, which costs a system call each time.
#if defined(__x86_64__) && !defined(BNFOLD_UCONTEXT)
asm(R"(
    .text
    .local bnfold_change_stack
    .type bnfold_change_stack, @function
bnfold_change_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size bnfold_change_stack, . - bnfold_change_stack
)");
using Context = void*;  // the stack pointer
extern "C" void bnfold_change_stack(Context* from, const Context* to);

static void prepare(Context& context, char* stack, std::size_t size, void (*enter)()) {
    // What bnfold_change_stack pops: six registers and where to go on; then a return address for `enter`.
    void** top = reinterpret_cast<void**>(stack + size) - 8;
    std::fill(top, top + 8, nullptr);
    top[6] = reinterpret_cast<void*>(enter);
    context = top;
}
#else
#include <ucontext.h>
using Context = ucontext_t;
static void bnfold_change_stack(Context* from, const Context* to) { swapcontext(from, to); }

static void prepare(Context& context, char* stack, std::size_t size, void (*enter)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
}
#endif

namespace bnfold::host {

Thread* current;
std::int64_t calls_left;

namespace {

#if defined(BNFOLD_SANITIZED) || defined(BNFOLD_LARGE_FRAMES)
constexpr std::size_t stack_size = 256 << 10;  // frames are larger, and reports are written on the same stack
#else
constexpr std::size_t stack_size = 32 << 10;
#endif
constexpr std::uint64_t canary = 0x9e3779b97f4a7c15;  // at the far end of each stack
constexpr int warp_size = 32, most_threads = 1024, most_cluster = 16;

struct Fiber;

struct Copy {
    void* to;
    const void* from;  // null: it was made at once
    int group;
};

// Threads that wait for each other. In a cluster they may arrive before they wait: a round ends when all have.
struct Meeting {
    std::size_t members = 0;
    std::uint64_t priority = 0;  // of all of them in the schedule, 16 bits
    Fiber* ended = nullptr;  // a member, if one has
    std::vector<Fiber*> waiting;
    std::size_t arrived = 0;
    std::uint64_t round = 0;
};

struct Block {
    std::unique_ptr<char[]> shared;
    int running = 0;
    Meeting barrier;
    Meeting warps[most_threads / warp_size];
};

struct Fiber : Thread {
    Context context;
    char* stack;
    std::size_t size;  // of the stack
    void* fake;        // AddressSanitizer's own stack
    Block* home;
    Meeting* warp;
    Meeting* cluster;
    const char* at;        // what it waits at, and where that is in the source
    const char* file;
    int line;
    float brings, takes;  // in a shuffle
    int mask;
    bool has_arrived;     // at the barrier of its cluster, for which it has not waited yet
    std::uint64_t round;  // in which it arrived
    int groups;  // of copies that have ended
    std::vector<Copy> copies;  // under way
};

// The launch.
Launch shape;
void (*call_kernel)(const void*);
const void* kernel;
std::string error;
std::unordered_set<const void*> stored;  // by store_once
const Fiber* straggler;  // null: none
std::uint64_t random_state;

// What is resident.
std::vector<Fiber> fibers;
std::vector<Block> blocks;
std::vector<Meeting> clusters;
Fiber outside;   // the caller of the launch
Fiber* left;     // who was switched away from
int running;     // fibers that have not ended
std::int64_t vain;  // how often somebody looked whether his wait is over, since anything was done

// Fibers that are ready. Without a seed a queue; with one a heap, whose front has the lowest turn.
struct Ready {
    std::uint64_t turn;
    Fiber* fiber;
    bool operator<(const Ready& other) const { return turn > other.turn; }
};
std::deque<Ready> ready;
std::uint64_t turns;  // that were given so far

std::uint64_t random() {
    std::uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}
unsigned random(std::uint64_t below) { return static_cast<unsigned>((random() >> 32) * below >> 32); }

Fiber* me() { return static_cast<Fiber*>(current); }

std::string place(const char* file, int line) {
    const char* slash = std::strrchr(file, '/');
    return std::string(" (") + (slash != nullptr ? slash + 1 : file) + ":" + std::to_string(line) + ")";
}
std::string name(const Fiber& fiber) {
    return "block " + std::to_string(fiber.block) + ", thread " + std::to_string(fiber.thread);
}
std::string waits(const Fiber& fiber) {
    return name(fiber) + " waits at " + fiber.at + place(fiber.file, fiber.line);
}

void arrive() {
#ifdef BNFOLD_SANITIZED
    const void* stack;
    __sanitizer_finish_switch_fiber(me()->fake, &stack, &left->size);
    left->stack = static_cast<char*>(const_cast<void*>(stack));
#endif
}

void change(Fiber* to, bool for_good = false) {
    left = me();
    current = to;
#ifdef BNFOLD_SANITIZED
    __sanitizer_start_switch_fiber(for_good ? nullptr : &left->fake, to->stack, to->size);
#endif
    static_cast<void>(for_good);
    bnfold_change_stack(&left->context, &to->context);
    arrive();
}

[[noreturn]] void give_up(std::string message) {
    error = std::move(message);
    change(&outside, true);
    __builtin_unreachable();
}

// Every thread that waits, those of a block that follow each other and wait at the same place in one line.
[[noreturn]] void give_up_stuck() {
    std::string message = "deadlock";
    int lines = 0;
    for (std::size_t i = 0, end; i < fibers.size(); i = end) {
        const Fiber& fiber = fibers[i];
        const auto same = [&](const Fiber& other) {
            return other.home == fiber.home && other.at == fiber.at && other.line == fiber.line;
        };
        for (end = i + 1; end < fibers.size() && same(fibers[end]);) ++end;
        if (fiber.at == nullptr) continue;
        if (++lines > 20) {
            message += "\n  ...";
            break;
        }
        message += "\n  " + waits(fiber);
        if (end > i + 1) message += ", so do those up to thread " + std::to_string(fibers[end - 1].thread);
    }
    give_up(std::move(message));
}

// When a fiber that can go on does: in order of readiness, or by the seed. Some faults show only if some go
// far ahead of others, which is rare if everyone is as likely. Of four seeds, one gives whole warps and one
// whole blocks a priority, anew at each barrier of their block; and one makes a single thread a straggler, which
// goes when the others have nothing else to do, and have looked a few hundred times for what they wait for.
std::uint64_t turn(const Fiber& fiber) {
    if (shape.seed == 0) return turns++;
    if (&fiber == straggler) return (turns + 300) | 1ull << 63;
    std::uint64_t turn = random() >> 34;
    if (shape.seed % 4 != 1) turn |= fiber.warp->priority << 30;
    if (shape.seed % 4 == 0) turn |= fiber.home->barrier.priority << 46;
    return turn;
}
// After all others, unless they too come last.
std::uint64_t last_turn() { return turns++ | 1ull << 63; }

void set_priorities(Block& block) {
    block.barrier.priority = random(1 << 16);
    for (Meeting& warp : block.warps) warp.priority = random(1 << 16);
}

void make_ready(Fiber* fiber, std::uint64_t turn) {
    ready.push_back({turn, fiber});
    if (shape.seed != 0) std::push_heap(ready.begin(), ready.end());
}

// Switches to a fiber that is ready. Comes back when this one is chosen again.
void next(bool ended = false) {
    if (current != &outside && std::memcmp(me()->stack, &canary, sizeof canary) != 0) {
        give_up(name(*me()) + ": the stack of " + std::to_string(stack_size) + " bytes overflowed");
    }
    Fiber* to = &outside;
    if (!ready.empty()) {
        to = ready.front().fiber;
        if (shape.seed == 0) {
            ready.pop_front();
        } else {
            std::pop_heap(ready.begin(), ready.end());
            ready.pop_back();
        }
    } else if (running > 0) {
        give_up_stuck();
    }
    if (to != current) change(to, ended);
}

// Where the thread is to wait, of whose meeting nobody may have ended.
void note_place(const Meeting& meeting, const char* what, const char* file, int line) {
    Fiber* fiber = me();
    fiber->at = what;
    fiber->file = file;
    fiber->line = line;
    if (meeting.ended != nullptr) {
        give_up("divergence: " + waits(*fiber) + ", " + name(*meeting.ended) + " has ended");
    }
}

// All are here: those that wait go on.
void release(Meeting& meeting) {
    for (Fiber* member : meeting.waiting) {
        member->at = nullptr;
        make_ready(member, turn(*member));
    }
    meeting.waiting.clear();
    vain = 0;
}

// Waits until all members are here.
void meet(Meeting& meeting, const char* what, const char* file, int line) {
    Fiber* fiber = me();
    note_place(meeting, what, file, line);
    meeting.waiting.push_back(fiber);
    const Fiber& earlier = *meeting.waiting.front();
    if (earlier.line != line) give_up("divergence: " + waits(earlier) + ", " + waits(*fiber));
    if (meeting.waiting.size() == meeting.members) {
        if (&meeting == &fiber->home->barrier) set_priorities(*fiber->home);
        release(meeting);
    }
    next();
}

void fill_with_nan(char* memory, std::size_t size) {
    for (std::size_t i = 0; i < size; i += 8) {
        // Each 16 bits are a NaN as half, as bfloat16 and as the upper half of a float.
        const std::uint64_t bits = random() | 0x7f817f817f817f81;
        std::memcpy(memory + i, &bits, std::min<std::size_t>(8, size - i));
    }
}

// A fiber's whole life.
void live() {
    arrive();
    call_kernel(kernel);
    Fiber* fiber = me();
    for (Meeting* meeting : {fiber->warp, &fiber->home->barrier, fiber->cluster}) {
        if (!meeting->waiting.empty()) {
            give_up("divergence: " + waits(*meeting->waiting.front()) + ", " + name(*fiber) + " ends");
        }
        meeting->ended = fiber;
    }
    if (fiber->cluster->arrived > 0) give_up("divergence: others have arrived, " + name(*fiber) + " ends");
    if (!fiber->copies.empty()) give_up(name(*fiber) + " ends while its copies are under way");
    if (--fiber->home->running == 0) {
        fill_with_nan(fiber->shared, fiber->shared_size);
#ifdef BNFOLD_SANITIZED
        __asan_poison_memory_region(fiber->shared, fiber->shared_size);
#endif
    }
    vain = 0;
    --running;
    next(true);
}

// Memory for `count` stacks, and for one below, into which the first may overflow. Pages that nobody touches
// cost nothing.
char* stacks(std::size_t count) {
    static char* memory = nullptr;
    static std::size_t held = 0;
    ++count;
    if (count > held) {
        if (held > 0) munmap(memory, held * stack_size);
        held = 0;
        void* got = mmap(nullptr, count * stack_size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got == MAP_FAILED) return nullptr;
        memory = static_cast<char*>(got);
        held = count;
    }
    return memory + stack_size;
}

// Runs blocks that are resident together: `count` of them from block `start` on.
void run_blocks(int start, int count) {
    const std::size_t shared_size = shape.shared;
    running = count * shape.block;
    char* stack = stacks(running);
    if (stack == nullptr) {
        error = "no memory for " + std::to_string(running) + " stacks";
        return;
    }
    fibers.resize(running);
    blocks = std::vector<Block>(count);
    clusters = std::vector<Meeting>(count / shape.cluster);
    ready.clear();
    turns = 0;
    vain = 0;
    calls_left = shape.seed != 0 ? 1 + random(64) : INT64_MAX;
    // The first threads of a block do what the others do not.
    const unsigned late = random(count) * shape.block + random(random(2) == 0 ? warp_size : shape.block);
    straggler = shape.seed % 4 == 3 ? &fibers[late] : nullptr;

    for (int b = 0; b < count; ++b) {
        Block& block = blocks[b];
        block.shared.reset(new char[shared_size]);
        fill_with_nan(block.shared.get(), shared_size);
        block.running = block.barrier.members = shape.block;
        clusters[b / shape.cluster].members = shape.cluster * shape.block;
        set_priorities(block);
        for (int t = 0; t < shape.block; ++t, stack += stack_size) {
            Fiber& fiber = fibers[b * shape.block + t];
            const Thread thread{t, shape.block, start + b, shape.grid, block.shared.get(), shared_size};
            static_cast<Thread&>(fiber) = thread;
            fiber.stack = stack;
            fiber.size = stack_size;
            fiber.fake = nullptr;
            fiber.home = &block;
            fiber.warp = &block.warps[t / warp_size];
            fiber.warp->members = warp_size;
            fiber.cluster = &clusters[b / shape.cluster];
            fiber.at = nullptr;
            fiber.has_arrived = false;
            fiber.groups = 0;
            fiber.copies.clear();
            std::memcpy(stack, &canary, sizeof canary);
            prepare(fiber.context, stack, stack_size, live);
            make_ready(&fiber, turn(fiber));
        }
    }
    current = &outside;
    next();
    current = nullptr;
#ifdef BNFOLD_SANITIZED
    for (Block& block : blocks) __asan_unpoison_memory_region(block.shared.get(), shared_size);
#endif
}

}  // namespace

void fail(const char* what, const char* file, int line) {
    give_up(name(*me()) + ": " + what + place(file, line));
}

void note_store(const void* place) { stored.insert(place); }
void check_load(const void* place, const char* file, int line) {
    if (stored.count(place) != 0) fail("load_once of what this launch stored", file, line);
}

void sync_block(const char* file, int line) { meet(me()->home->barrier, "sync_block", file, line); }

void arrive_cluster(const char* file, int line) {
    Fiber* fiber = me();
    Meeting& cluster = *fiber->cluster;
    if (fiber->has_arrived) fail("arrives again at the cluster's barrier, before it has waited", file, line);
    note_place(cluster, "arrive_cluster", file, line);
    fiber->at = nullptr;
    fiber->has_arrived = true;
    fiber->round = cluster.round;
    if (++cluster.arrived == cluster.members) {
        cluster.arrived = 0;
        ++cluster.round;
        release(cluster);
    }
    port_call();
}

void wait_cluster(const char* what, const char* file, int line) {
    Fiber* fiber = me();
    Meeting& cluster = *fiber->cluster;
    if (!fiber->has_arrived) fail("waits for the cluster, at whose barrier it has not arrived", file, line);
    fiber->has_arrived = false;
    if (fiber->round != cluster.round) {  // all have arrived
        make_ready(fiber, turn(*fiber));
    } else {
        note_place(cluster, what, file, line);
        cluster.waiting.push_back(fiber);
    }
    next();
}

// By four seeds late, by the next four at once. Late, the place holds NaN until its thread has waited.
void copy_async(void* to, const void* from, const char* file, int line) {
    const std::uint64_t offset = static_cast<char*>(to) - current->shared;
    if (offset + 16 > current->shared_size || offset > current->shared_size || offset % 16 != 0) {
        fail("copy_async to what is no place in shared memory", file, line);
    }
    auto& copies = me()->copies;
    if (std::any_of(copies.begin(), copies.end(), [&](const Copy& copy) { return copy.to == to; })) {
        fail("copy_async to where an earlier copy is under way", file, line);
    }
    const bool late = shape.seed / 4 % 2 == 0;
    if (late) {
        fill_with_nan(static_cast<char*>(to), 16);
    } else {
        std::memcpy(to, from, 16);
    }
    copies.push_back({to, late ? from : nullptr, me()->groups});
}
void end_group() { ++me()->groups; }
void wait_groups(int latest) {
    auto& copies = me()->copies;
    auto copy = copies.begin();
    for (; copy != copies.end() && copy->group < me()->groups - latest; ++copy) {
        if (copy->from != nullptr) std::memcpy(copy->to, copy->from, 16);
    }
    copies.erase(copies.begin(), copy);
}

float shuffle_xor(float value, int mask, const char* file, int line) {
    Fiber* fiber = me();
    Meeting& warp = *fiber->warp;
    fiber->brings = value;
    fiber->mask = mask;
    if (mask < 0 || mask >= warp_size) fail("the mask of a shuffle is beyond the warp", file, line);
    if (!warp.waiting.empty() && warp.waiting.front()->mask != mask) {
        fail("lanes of one warp shuffle with different masks", file, line);
    }
    if (warp.waiting.size() + 1 == warp.members) {  // before anyone goes on and brings the next value
        Fiber* lanes = fiber - fiber->thread % warp_size;
        for (int lane = 0; lane < warp_size; ++lane) lanes[lane].takes = lanes[lane ^ mask].brings;
    }
    meet(warp, "shuffle_xor", file, line);
    return fiber->takes;
}

void* of_peer(const void* here, std::uint64_t size, int rank, const char* file, int line) {
    port_call();
    const std::uint64_t offset = static_cast<const char*>(here) - current->shared;
    if (offset + size > current->shared_size || offset > current->shared_size) {
        fail("of_peer of what is not in shared memory", file, line);
    }
    if (rank < 0 || rank >= shape.cluster) fail("of_peer beyond the cluster", file, line);
    Block& peer = blocks[(me()->home - blocks.data()) / shape.cluster * shape.cluster + rank];
    if (peer.running == 0) fail("of_peer of a block that has ended", file, line);
    return peer.shared.get() + offset;
}

void wait(const char* what, const char* file, int line) {
    Fiber* fiber = me();
    fiber->at = what;
    fiber->file = file;
    fiber->line = line;
    // By a seed, at times after all others, one of whom it may wait for; but it may also go ahead of them.
    make_ready(fiber, shape.seed == 0 || random(2) == 0 ? turn(*fiber) : last_turn());
    // All that are ready have had their turns, and nobody did anything but look.
    if (++vain > 1000 + 64 * static_cast<std::int64_t>(ready.size())) give_up_stuck();
    next();
    fiber->at = nullptr;
}
void progress() { vain = 0; }

void lose_turn() {
    calls_left = 1 + random(shape.seed % 4 == 1 ? 64 : 4096);
    vain = 0;
    make_ready(me(), last_turn());
    next();
}

const char* mismatch(const Parameter* wanted, int number, const Argument* arguments, int count) {
    const auto text = [](Parameter type) {
        const char* kind = type.kind == 'p'   ? "a pointer"
                           : type.kind == 'f' ? "a floating-point number"
                           : type.kind == 'i' ? "an integer"
                                              : "a structure";
        return kind + (" of " + std::to_string(type.size)) + " bytes";
    };
    error.clear();
    if (number != count) {
        error = "the kernel takes " + std::to_string(number) + " arguments, not " + std::to_string(count);
    }
    for (int i = 0; i < number && error.empty(); ++i) {
        const Parameter given = arguments[i].type;
        if (given.size != wanted[i].size || given.kind != wanted[i].kind) {
            error = "argument " + std::to_string(i) + " is " + text(given);
            error += ", the kernel takes " + text(wanted[i]);
        }
    }
    return error.empty() ? nullptr : error.c_str();
}

const char* run(const Launch& launch, void (*call)(const void*), const void* which) {
    shape = launch;
    call_kernel = call;
    kernel = which;
    random_state = launch.seed;
    error.clear();
    stored.clear();
    const auto number = [](long long value) { return std::to_string(value); };
    if (shape.grid < 1) {
        error = "a grid of " + number(shape.grid) + " blocks";
    } else if (shape.block < 1 || shape.block > most_threads || shape.block % warp_size != 0) {
        error = "a block of " + number(shape.block) + " threads";
    } else if (shape.cluster < 1 || shape.cluster > most_cluster) {
        error = "a cluster of " + number(shape.cluster) + " blocks";
    } else if (shape.grid % shape.cluster != 0) {
        error = "a grid of " + number(shape.grid) + " blocks in clusters of " + number(shape.cluster);
    } else if (shape.shared < 0 || shape.shared > shape.most_shared) {
        error = number(shape.shared) + " bytes of shared memory, of " + number(shape.most_shared);
    }
    if (!error.empty()) return error.c_str();

    const int together = shape.cooperative != 0 ? shape.grid : shape.cluster;
    std::vector<int> order(shape.grid / together);
    std::iota(order.begin(), order.end(), 0);
    if (shape.seed != 0) {
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random(i)]);
    }
    for (const int group : order) {
        run_blocks(group * together, together);
        if (!error.empty()) return error.c_str();
    }
    return nullptr;
}

}  // namespace bnfold::host
