#include "modules.h"

#include <algorithm>
#include <dlfcn.h>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <regex>
#include <spawn.h>
#include <sstream>
#include <sys/wait.h>
#include <unistd.h>

namespace {

const std::string mark = "\n//source\n";

// Return the text after a directive in PTX: "8.8" after ".version ".
std::string after(const std::string &ptx, const std::string &directive)
{
    size_t start = ptx.find(directive);
    if (start == std::string::npos)
        return "";
    start += directive.size();
    return ptx.substr(start, ptx.find_first_of(" ,\n", start) - start);
}

Version parsed(const std::string &text)
{
    Version found{0, 0};
    sscanf(text.c_str(), "%d.%d", &found.first, &found.second);
    return found;
}

std::vector<std::string> entries(const std::string &ptx)
{
    std::vector<std::string> names;
    static const std::regex entry(R"(\.entry\s+(\w+))");
    for (std::sregex_iterator each(ptx.begin(), ptx.end(), entry), end; each != end; ++each)
        names.push_back((*each)[1]);
    return names;
}

// Return the source that NVRTC compiled, with the C++ extensions of CUDA replaced.
std::string for_the_host(const std::string &ptx)
{
    size_t at = ptx.find(mark);
    std::string comment = at == std::string::npos ? "" : ptx.substr(at + mark.size()), source;
    for (size_t start = 0; start < comment.size();) {
        size_t end = std::min(comment.find('\n', start), comment.size());
        if (comment.compare(start, 3, "//|") == 0)
            source += comment.substr(start + 3, end - start - 3) + '\n';
        start = end + 1;
    }
    source = std::regex_replace(
        source, std::regex(R"(extern\s+__shared__\s+([^;\[]+?)\s*(\w+)\s*\[\s*\]\s*;)"),
        "$1 *$2 = ($1 *)stub::shared;");
    source = std::regex_replace(source, std::regex(R"(asm\("\{ cvt\.f32\.f16.*)"), "r = stub::half_to_float(h.data);");
    return std::regex_replace(
        source, std::regex(R"(asm\("\{ cvt\.rn\.f16\.f32.*)"), "r.data = stub::float_to_half(f);");
}

// Return the FNV-1a hash.
std::string digest(const std::string &text)
{
    unsigned long long hash = 14695981039346656037ull;
    for (unsigned char c : text)
        hash = (hash ^ c) * 1099511628211ull;
    char name[20];
    snprintf(name, sizeof name, "%016llx", hash);
    return name;
}

bool run(std::vector<std::string> words, const std::string &log)
{
    std::vector<char *> arguments;
    for (std::string &word : words)
        arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    // g++ finds the assembler through PATH, which a test may have removed.
    char path[] = "PATH=/usr/local/bin:/usr/bin:/bin", *environment[] = {path, nullptr};
    pid_t child;
    int status = posix_spawn(&child, arguments[0], &actions, nullptr, arguments.data(), environment);
    posix_spawn_file_actions_destroy(&actions);
    return !status && waitpid(child, &status, 0) == child && status == 0;
}

// Return the library of a program, and compile it unless it exists. Return "" if the program does not compile.
std::string compiled(const std::string &program)
{
    std::string name = std::string(STUB_FOLDER) + "/" + digest(program), library = name + ".so";
    if (access(library.c_str(), F_OK) == 0)
        return library;
    name += '-' + std::to_string(getpid());
    std::ofstream(name + ".cpp") << program;
    std::istringstream words(STUB_FLAGS);
    std::vector<std::string> command{STUB_COMPILER};
    command.insert(command.end(), std::istream_iterator<std::string>(words), {});
    command.insert(command.end(), {"-o", name + ".so", name + ".cpp"});
    if (!run(command, name + ".log") || rename((name + ".so").c_str(), library.c_str())) {
        std::ifstream log(name + ".log");
        std::string errors((std::istreambuf_iterator<char>(log)), {});
        fprintf(stderr, "stub of CUDA: %s.cpp does not compile for the host: %s\n", name.c_str(), errors.c_str());
        return "";
    }
    rename((name + ".cpp").c_str(), (std::string(STUB_FOLDER) + "/" + digest(program) + ".cpp").c_str());
    unlink((name + ".log").c_str());
    return library;
}

template <class Function> void find(Function &place, void *library, const std::string &name)
{
    place = reinterpret_cast<Function>(dlsym(library, name.c_str()));
}

} // namespace

Version ptx_of(Version cuda)
{
    // CUDA 12.0 to 12.9 have PTX 8.0 to 8.8; 12.6 kept the version of 12.5.
    if (cuda.first == 12)
        return {8, cuda.second < 6 ? cuda.second : cuda.second - 1};
    return {cuda.first - 4, cuda.second};
}

Result refusal(const std::string &ptx, Version cuda, Version capability)
{
    if (parsed(after(ptx, ".version ")) == Version{0, 0})
        return INVALID_PTX;
    if (parsed(after(ptx, ".version ")) > ptx_of(cuda))
        return UNSUPPORTED_PTX_VERSION;
    int target = atoi(after(ptx, ".target sm_").c_str());
    return target > 10 * capability.first + capability.second ? NO_BINARY_FOR_GPU : SUCCESS;
}

// Return a module of kernels that do nothing.
Module *blind(const std::vector<std::string> &names)
{
    static const size_t no_arguments[] = {0};
    auto *module = new Module{nullptr, {}};
    for (const std::string &name : names)
        module->kernels.push_back(new Kernel{name, module, no_arguments, [](const void *, void **) {}});
    return module;
}

Module *load(const std::string &ptx)
{
    std::vector<std::string> names = entries(ptx);
    if (variable("STUB_BLIND"))
        return blind(names);
    bool has_barriers = ptx.find("bar.sync") != std::string::npos || ptx.find("barrier.") != std::string::npos;
    int architecture = 10 * atoi(after(ptx, ".target sm_").c_str());
    std::string program = "#define __CUDA_ARCH__ " + std::to_string(architecture) +
                          "\n#include \"" STUB_FOLDER "/kernel.h\"\n" + for_the_host(ptx);
    for (const std::string &name : names)
        program += "STUB_ENTRY(" + name + ", " + (has_barriers ? "true" : "false") + ")\n";
    std::string path = compiled(program);
    void *library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return nullptr;
    auto *module = new Module{library, {}};
    for (const std::string &name : names) {
        auto *kernel = new Kernel{name, module, nullptr, nullptr};
        const size_t *const *sizes;
        find(sizes, library, "stub_sizes_" + name);
        find(kernel->run, library, "stub_run_" + name);
        kernel->sizes = *sizes;
        module->kernels.push_back(kernel);
    }
    return module;
}

void unload(Module *module)
{
    for (Kernel *kernel : module->kernels)
        delete kernel;
    if (module->library)
        dlclose(module->library);
    delete module;
}
