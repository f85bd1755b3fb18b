#include "tiles.h"

#include <sys/syscall.h>
#include <unistd.h>

bool qlocal::allow_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return granted;
}
