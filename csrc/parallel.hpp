// Blocks of work on std::thread: no second OpenMP runtime beside torch's, and clean under ThreadSanitizer.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace dm2 {

// Call work(first, count) for every block of [0, n); the first exception of a worker is rethrown here. Work must write
// only to its own block, so that the number of threads cannot change a result. Between two blocks the calling thread
// calls report(part of the blocks begun), which may throw to end the call.
template <class Work, class Report>
void parallel_blocks(std::ptrdiff_t n, std::ptrdiff_t block, int num_threads, const Work& work, const Report& report) {
    const std::ptrdiff_t blocks = (n + block - 1) / block;
    std::atomic<std::ptrdiff_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    const auto worker = [&](bool reports) {
        try {
            for (std::ptrdiff_t b = next++; b < blocks && !failed; b = next++) {
                if (reports) report(static_cast<double>(b) / static_cast<double>(blocks));
                work(b * block, std::min(block, n - b * block));
            }
        } catch (...) {
            if (!failed.exchange(true)) error = std::current_exception();
        }
    };
    const std::ptrdiff_t helpers = std::min<std::ptrdiff_t>(num_threads, blocks) - 1;
    std::vector<std::thread> threads;
    try {
        for (std::ptrdiff_t t = 0; t < helpers; ++t) threads.emplace_back(worker, false);
        worker(true);
    } catch (...) {  // a thread could not be started: let the others finish before unwinding
        failed = true;
        for (std::thread& thread : threads) thread.join();
        throw;
    }
    for (std::thread& thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
}

template <class Work>
void parallel_blocks(std::ptrdiff_t n, std::ptrdiff_t block, int num_threads, const Work& work) {
    parallel_blocks(n, block, num_threads, work, [](double) {});
}

}  // namespace dm2
