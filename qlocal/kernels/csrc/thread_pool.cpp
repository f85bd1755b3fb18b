#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <immintrin.h>
#include <memory>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

// Longer than the gaps between the matrices of a step, far shorter than anything a user notices. Measured in time,
// since CPUs pause for 10 to 140 cycles; sleeping in those gaps costs 5 % of decoding.
constexpr std::chrono::microseconds kWatchfulTime{100};

// Wait awake until done() or for that time; says whether it is done.
template <class Done> bool spin_until(const Done& done) {
    constexpr int between_looks_at_the_clock = 64;
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int spin = 0; spin < between_looks_at_the_clock; ++spin) {
            if (done())
                return true;
            _mm_pause();
        }
    } while (std::chrono::steady_clock::now() - start < kWatchfulTime);
    return false;
}

class Pool {
  public:
    explicit Pool(int32_t threads) : owner_(getpid()) {
        for (int32_t i = 1; i < threads; ++i)
            workers_.emplace_back([this] { work(); });
    }

    ~Pool() {
        {
            const std::lock_guard<std::mutex> lock(sleep_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_)
            worker.join();
    }

    bool is_of_this_process() const { return owner_ == getpid(); }
    int32_t threads() const { return int32_t(workers_.size()) + 1; }

    void run(int64_t total, int64_t step, qlocal::RowsBody body, void* context) {
        body_ = body;
        context_ = context;
        total_ = total;
        step_ = step;
        next_ = 0;
        open_ = true;
        ++generation_;
        wake_sleepers();
        take_pieces();
        // A worker first counts itself as active and then looks whether the loop is open; here it is closed first
        // and then the active ones are awaited. So a late worker either is awaited or finds the loop closed.
        // Where other processes want the CPU, one of them may have taken a worker's place: then let it finish.
        open_ = false;
        const auto is_done = [this] { return active_ == 0; };
        if (!spin_until(is_done))
            while (!is_done())
                std::this_thread::yield();
    }

  private:
    // A worker counts itself as asleep and then looks for a new generation; here the generation is new before anybody
    // is looked for. So nobody sleeps through a loop, and while all are awake no lock is taken.
    void wake_sleepers() {
        if (sleepers_ == 0)
            return;
        {
            const std::lock_guard<std::mutex> lock(sleep_);
        } // one that has counted itself is waiting now
        wake_.notify_all();
    }

    // Large shares first and single pieces in the end: long streams of memory, and nobody waits long for the last one.
    void take_pieces() {
        const int64_t shares = 2 * int64_t(threads());
        for (int64_t first = next_; first < total_;) {
            const int64_t steps = (total_ - first) / (shares * step_);
            const int64_t end = first + (steps > 1 ? steps : 1) * step_;
            if (next_.compare_exchange_weak(first, end)) {
                for (; first < end && first < total_; first += step_)
                    body_(context_, first, first + step_ < total_ ? first + step_ : total_);
                first = next_;
            }
        }
    }

    void work() {
        uint64_t seen = 0;
        while (await(seen)) {
            seen = generation_;
            ++active_;
            if (open_)
                take_pieces();
            --active_;
        }
    }

    // Wait for a generation after `seen`; false at the end.
    bool await(uint64_t seen) {
        const auto is_called = [&] { return generation_ != seen || stop_; };
        if (!spin_until(is_called)) {
            std::unique_lock<std::mutex> lock(sleep_);
            ++sleepers_;
            wake_.wait(lock, is_called);
            --sleepers_;
        }
        return !stop_;
    }

    const pid_t owner_;
    std::vector<std::thread> workers_;
    std::mutex sleep_;
    std::condition_variable wake_;
    std::atomic<uint64_t> generation_{0};
    std::atomic<bool> stop_{false};
    std::atomic<bool> open_{false};
    std::atomic<int32_t> active_{0};
    std::atomic<int32_t> sleepers_{0};
    std::atomic<int64_t> next_{0};
    // Written while the loop is closed, read while it is open.
    qlocal::RowsBody body_ = nullptr;
    void* context_ = nullptr;
    int64_t total_ = 0;
    int64_t step_ = 1;
};

std::mutex turn; // one loop at a time; also guards the two below
std::unique_ptr<Pool> pool;
int32_t wanted_threads = 1;

// The pool, started when it is first needed. Its threads do not survive a fork, so a child leaves the parent's
// object alone (joining would hang) and makes its own.
Pool& current_pool() {
    if (pool && !pool->is_of_this_process())
        (void)pool.release();
    if (!pool || pool->threads() != wanted_threads)
        pool = std::make_unique<Pool>(wanted_threads);
    return *pool;
}

} // namespace

void qlocal::set_threads(int32_t count) {
    const std::lock_guard<std::mutex> lock(turn);
    wanted_threads = count < 1 ? 1 : count;
}

int32_t qlocal::get_threads() {
    const std::lock_guard<std::mutex> lock(turn);
    return wanted_threads;
}

void qlocal::parallel_rows(int64_t total, int64_t step, RowsBody body, void* context) {
    std::unique_lock<std::mutex> lock(turn);
    if (wanted_threads == 1 || total <= step) {
        lock.unlock();
        return body(context, 0, total);
    }
    current_pool().run(total, step, body, context);
}
