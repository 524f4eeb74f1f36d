// Units of which a block's part is longer than its ring (ring.cuh). The first turns of a unit only pass through: they
// are summed, and copied once more when they are written. The last ones stay until then. Of a unit of n turns, k of
// which stay, the ring's turns are in this order, each copied as soon as the one that many places before it is done:
//
//     0 .. n-k-1     summed, and let go
//     n-k .. n-1     summed; then all blocks' sums are waited for; then written
//     0 .. e-1       written
//     n-k-1 .. e     written, the latest first, which are the likeliest to be in L2
//
// Before the blocks wait for each other L2 is asked for some turns, so that memory does not wait: for the unit's first e,
// which it has lost since they were summed. Where it still has all turns that passed, e is 0, and it is asked for the
// next unit's first ones.

#pragma once

#include "ring.cuh"

namespace bnfold {

constexpr int kAsked = 16;   // vectors of each thread that L2 is asked for before a block waits: 128 KB

// The turns of a unit in the order in which they are copied, and written again.
struct Order {
    const int most, passing, lost;   // turns of a unit, that pass, that L2 is asked for again
    const bool writes;
    int unit = 0, at = 0;

    // size: turns that the ring holds; cached: of those that pass, as many as L2 still has.
    BNFOLD_DEVICE Order(int turns, int size, int asked, int cached, bool w)
        : most(turns), passing(w ? most - least(size, most - 1) : most - 1),
          lost(w && passing > cached ? asked : 0), writes(w) {}

    BNFOLD_DEVICE int again(int i) const { return i < lost ? i : passing - 1 - (i - lost); }
    BNFOLD_DEVICE int turn() const { return at < most ? at : again(at - most); }
    BNFOLD_DEVICE void next() {
        if (++at < (writes ? most + passing : most)) return;
        at = 0;
        ++unit;
    }
};

// Every block has two turns of a unit at least. A task is one of a ring, with this in addition:
//
//     writes()                               whether units are written; if not, all their turns but the last pass
//     centre(vectors)                        so many vectors of each thread are summed, and more follow
//     write_again(slot, place, channels(), again)   writes a vector that was copied once more
//     recalls, recall(place)                 whether something else is loaded for that, a turn ahead
template <class Task, int V, Layout L>
struct LongRing {
    using Place = typename Track<V, L>::Place;
    static constexpr int U = Task::vectors, apart = U * kThreads, turn_slots = Task::tensors * apart;
    // Turns that L2 is asked for, and that it still has.
    static constexpr int asked = kAsked / (Task::tensors * U);
    static constexpr int kept = port::kept_in_cache / (16 * turn_slots), cached = kept > asked ? kept : asked;
    Task& task;
    const Part<V, L>& part;
    const Track<V, L> track;
    port::Bits16* const slots;          // [size][tensors][U][kThreads], of this thread
    const int size;                     // in turns
    const int mine;                     // of a unit: vectors of this thread
    Order order;                        // of what is copied next
    int under_way = 0;                  // turns copied for which nobody has waited
    int at = 0;                         // the slot of the turn that is treated

    BNFOLD_DEVICE LongRing(Task& t, const Part<V, L>& p, port::Bits16* memory, const Team& team)
        : task(t), part(p), track(p, team.teams), slots(memory + port::thread()), size(p.shape.window / apart),
          mine(ceiling(count() - port::thread(), kThreads)),
          order(ceiling(count(), apart), size, asked, cached, task.writes()) {}

    BNFOLD_DEVICE int count() const { return static_cast<int>(part.end - part.begin); }

    BNFOLD_DEVICE port::Bits16* slot(int u) const { return slots + at + u * kThreads; }
    BNFOLD_DEVICE void on() {
        at += turn_slots;
        if (at == size * turn_slots) at = 0;
    }
    // This thread's vectors of a turn: U but in a unit's last one.
    BNFOLD_DEVICE int vectors(int turn) const { return least(U, mine - turn * U); }
    BNFOLD_DEVICE void places(int k, int turn, Place (&found)[U]) const {
        track.ahead(part, k, turn * U).take(found);
    }

    // The next turn takes the place of one that is done.
    BNFOLD_DEVICE void copy() {
        if (order.unit == task.team.units) return;
        const int turn = order.turn();
        Place from[U];
        places(order.unit, turn, from);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (u >= vectors(turn)) continue;
#pragma unroll
            for (int s = 0; s < Task::tensors; ++s) port::copy_async(slot(u) + s * apart, task.source(s, from[u]));
        }
        port::end_group();
        ++under_way;
        order.next();
    }
    BNFOLD_DEVICE void wait() { port::wait_groups(--under_way); }

    // Calls each(turn, get(place) of its vectors) for turn(first) ... turn(last - 1). What is got of a turn is loaded before
    // that in front of it is treated or, as registers are few, of 16 bytes behind it.
    template <bool Gets, class Turn, class Get, class Each>
    BNFOLD_DEVICE void each_turn(int k, int first, int last, Turn turn, Get get, Each each) {
        using Item = decltype(get(Place{}));
        constexpr bool before = sizeof(Item) < 16;
        Item got[U] = {}, next[U] = {};
        const auto load = [&](int i, Item (&loaded)[U]) {
            if (!Gets || i >= last) return;
            Place from[U];
            places(k, turn(i), from);
#pragma unroll
            for (int u = 0; u < U; ++u) {
                if (u < vectors(turn(i))) loaded[u] = get(from[u]);
            }
        };
        load(first, got);
#pragma unroll 1
        for (int i = first; i < last; ++i) {
            if (before) load(i + 1, next);
            each(turn(i), got);
            if (!before) load(i + 1, got);
#pragma unroll
            for (int u = 0; before && u < U; ++u) got[u] = next[u];
            on();
        }
    }
    // Turns that pass have no gaps.
    template <bool Passes, class Each>
    BNFOLD_DEVICE void each_vector(int turn, Each each) const {
        if (Passes || vectors(turn) == U) {
#pragma unroll
            for (int u = 0; u < U; ++u) each(u);
        } else {
#pragma unroll
            for (int u = 0; u < U - 1; ++u) {
                if (u < vectors(turn)) each(u);
            }
        }
    }
    BNFOLD_DEVICE static int in_order(int i) { return i; }

    template <bool Passes>
    BNFOLD_DEVICE void sum(int k, int first, int last) {
        const auto get = [&](Place from) { return task.note(from); };
        each_turn<Task::notes>(k, first, last, in_order, get, [&](int turn, const typename Task::Note (&noted)[U]) {
            wait();
            if (Passes && turn == 0) {
                task.begin(k, slot(0));
            } else if (Passes && (turn & (turn - 1)) == 0) {
                task.centre(turn * U);
            }
            const auto origins = task.origins(k);   // each time: registers are few
            each_vector<Passes>(turn, [&](int u) { task.template add<!Passes>(slot(u), origins, noted[u]); });
            if (Passes) copy();
        });
    }
    BNFOLD_DEVICE void write(int k) {
        const auto channels = task.channels();
        const auto fetch = [&](Place to) { return task.fetch(to); };
        const auto stayed = [&](int turn, const typename Task::More (&more)[U]) {
            Place to[U];
            places(k, turn, to);
            each_vector<false>(turn, [&](int u) { task.write(slot(u), to[u], channels, more[u]); });
            copy();
        };
        each_turn<Task::fetches>(k, order.passing, order.most, in_order, fetch, stayed);
        const auto recall = [&](Place to) { return task.recall(to); };
        const auto passed = [&](int turn, const typename Task::Again (&again)[U]) {
            wait();
            Place to[U];
            places(k, turn, to);
            each_vector<true>(turn, [&](int u) { task.write_again(slot(u), to[u], channels, again[u]); });
            copy();
        };
        const auto latest = [&](int i) { return order.again(i); };
        each_turn<Task::recalls>(k, 0, order.passing, latest, recall, passed);
    }

    // Asks L2 for what memory has to give next: a thread for two vectors, 32 bytes.
    BNFOLD_DEVICE void ask(int k) const {
        const int of = order.lost > 0 ? k : k + 1;
        if (!order.writes || of == task.team.units || port::thread() % 2 != 0) return;
        auto ahead = track.ahead(part, of, 0);
#pragma unroll 1
        for (int i = 0; i < least(asked * U, mine); ++i) {
            Place from[1];
            ahead.take(from);
#pragma unroll
            for (int s = 0; s < Task::tensors; ++s) port::prefetch(task.source(s, from[0]));
        }
    }

    BNFOLD_DEVICE void pass() {
#pragma unroll 1
        for (int i = 0; i < size; ++i) {
            copy();
            on();
        }
        task.prepare();
#pragma unroll 1
        for (int k = 0; k < task.team.units; ++k) {
            sum<true>(k, 0, order.passing);
            const int stay = at;
            ask(k);
            sum<false>(k, order.passing, order.most);
            task.tell(k, mine);
            task.hear(k);
            at = stay;
            if (task.writes()) {
                write(k);
            } else {
                copy();
                on();
            }
            task.leave(k);
            task.prepare(k + 2);  // the next unit's barriers come before anybody asks for it
        }
    }
};

}  // namespace bnfold
