// A client as NVIDIA's headers make it: everything below goes through their inline functions.
#include <NvInferRuntime.h>
#include <cstdio>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

using namespace nvinfer1;

struct Logger : ILogger {
    std::string last;
    void log(Severity severity, char const* words) noexcept override {
        if (severity == Severity::kERROR) last = words;
    }
};

static void* library;
template <typename T> T symbol(char const* name) { return reinterpret_cast<T>(dlsym(library, name)); }

int main(int, char** argv) {
    library = dlopen(argv[1], RTLD_NOW);
    if (!library) { std::fprintf(stderr, "%s\n", dlerror()); return 1; }
    // The GPU's side: the driver's functions, from the same object.
    void* context = nullptr; void* stream = nullptr;
    symbol<int (*)(unsigned)>("cuInit")(0);
    symbol<int (*)(void**, int)>("cuDevicePrimaryCtxRetain")(&context, 0);
    symbol<int (*)(void*)>("cuCtxSetCurrent")(context);
    symbol<int (*)(void**, unsigned)>("cuStreamCreate")(&stream, 1);
    auto allocate = symbol<int (*)(unsigned long long*, size_t)>("cuMemAlloc_v2");
    auto send = symbol<int (*)(unsigned long long, void const*, size_t, void*)>("cuMemcpyHtoDAsync_v2");
    auto fetch = symbol<int (*)(void*, unsigned long long, size_t, void*)>("cuMemcpyDtoHAsync_v2");

    Logger logger;
    auto create = symbol<void* (*)(void*, int)>("createInferRuntime_INTERNAL");
    auto* runtime = static_cast<IRuntime*>(create(&logger, NV_TENSORRT_VERSION));
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    auto* plan = runtime->deserializeCudaEngine(bytes.data(), bytes.size());
    if (!plan) { std::fprintf(stderr, "%s\n", logger.last.c_str()); return 1; }
    auto* execution = plan->createExecutionContext();

    std::vector<unsigned long long> memory;
    for (int i = 0; i < plan->getNbIOTensors(); i++) {
        char const* name = plan->getIOTensorName(i);
        bool input = plan->getTensorIOMode(name) == TensorIOMode::kINPUT;
        Dims dims = plan->getTensorShape(name);
        std::printf("%s %s %d type %d\n", name, input ? "input" : "output", int(dims.d[0]), int(plan->getTensorDataType(name)));
        unsigned long long at = 0;
        allocate(&at, 16);
        memory.push_back(at);
        if (!execution->setTensorAddress(name, reinterpret_cast<void*>(at))) return 2;
        if (input && !execution->setInputShape(name, dims)) return 3;
        if (execution->getTensorShape(name).d[0] != dims.d[0]) return 4;
    }
    Dims wrong{1, {5}};
    if (execution->setInputShape("a", wrong)) return 5;
    std::printf("refused: %s\n", logger.last.c_str());

    float a[4] = {10.5f, 20.5f, 30.5f, 40.5f}, sum[4];
    int b[4] = {1, 2, 3, 4}, product[4];
    send(memory[0], a, 16, stream);
    send(memory[1], b, 16, stream);
    if (!execution->enqueueV3(static_cast<cudaStream_t>(stream))) { std::fprintf(stderr, "%s\n", logger.last.c_str()); return 6; }
    fetch(sum, memory[2], 16, stream);
    fetch(product, memory[3], 16, stream);
    symbol<int (*)(void*)>("cuStreamSynchronize")(stream);
    std::printf("sum %g %g %g %g\nproduct %d %d %d %d\n", sum[0], sum[1], sum[2], sum[3], product[0], product[1], product[2], product[3]);
    std::printf("no plan: %d\n", runtime->deserializeCudaEngine("none", 4) == nullptr);
    delete execution;
    delete plan;
    delete runtime;
}
