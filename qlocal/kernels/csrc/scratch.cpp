#include "scratch.h"

#include <cstdlib>
#include <new>

void qlocal::AlignedMemory::Free::operator()(void* memory) const { std::free(memory); }

void* qlocal::AlignedMemory::at_least(int64_t bytes) {
    if (bytes > size_) {
        size_ = 0;
        memory_.reset(); // before, so that both never exist
        const int64_t size = (bytes + 4095) / 4096 * 4096;
        memory_.reset(std::aligned_alloc(64, size_t(size)));
        if (!memory_)
            throw std::bad_alloc();
        size_ = size;
    }
    return memory_.get();
}

void* qlocal::thread_scratch(int64_t bytes) {
    static thread_local AlignedMemory memory;
    return memory.at_least(bytes);
}
