#include "environment.hpp"

#include "dispatch.hpp"
#include "threads.hpp"

namespace adaptk::detail {

const std::string& apply_environment() {
    static const std::string& error = *new std::string([] {
        const std::string isa = choose_isa_from_environment();
        const std::string threads = set_num_threads_from_environment();
        return isa.empty() ? threads : isa;
    }());
    return error;
}

}  // namespace adaptk::detail
