// How far the neighbour search is from the limit of the machine, for the features of an .npy file: the pairs that meet
// each check, the SAD instructions and bytes of codes that takes, and what a bare loop of the instruction reaches.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

#include "search.hpp"

namespace {

constexpr std::ptrdiff_t kBuffer = 16384;  // bytes, within the L1 cache

double seconds(const std::chrono::steady_clock::time_point& start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A C-ordered float32 matrix.
std::vector<float> load(const char* path, std::ptrdiff_t& m, std::ptrdiff_t& d) {
    std::ifstream file(path, std::ios::binary);
    char start[10] = {};
    file.read(start, sizeof start);
    std::string header(static_cast<unsigned char>(start[8]) + 256u * static_cast<unsigned char>(start[9]), ' ');
    file.read(header.data(), static_cast<std::streamsize>(header.size()));
    const std::size_t shape = header.find("'shape': (");
    if (shape == std::string::npos || header.find("<f4") == std::string::npos ||
        header.find("'fortran_order': False") == std::string::npos ||
        std::sscanf(header.c_str() + shape, "'shape': (%td, %td)", &m, &d) != 2)
        throw std::runtime_error("the file must hold a C-ordered float32 matrix in .npy format");
    std::vector<float> rows(static_cast<std::size_t>(m * d));
    file.read(reinterpret_cast<char*>(rows.data()), static_cast<std::streamsize>(rows.size() * sizeof(float)));
    if (!file) throw std::runtime_error("the file must hold the whole matrix");
    return rows;
}

#ifdef DM2_X86
// SADs of a query with all 32-byte codes of a buffer, `rounds` times.
DM2_AVX2 long long bare(const std::uint8_t* codes, int rounds) {
    __m256i sum[4] = {};
    for (int round = 0; round < rounds; ++round) {
        const __m256i query = _mm256_set1_epi8(static_cast<char>(round));
        for (std::ptrdiff_t t = 0; t < kBuffer; t += 128)
            for (int c = 0; c < 4; ++c)
                sum[c] = _mm256_add_epi64(sum[c], _mm256_sad_epu8(query, dm2::avx2::load(codes + t + 32 * c)));
    }
    const __m256i all = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
    return _mm256_extract_epi64(all, 0) + _mm256_extract_epi64(all, 1);
}

// SAD instructions a second, on all threads at once: the best of a few tries.
double bare_rate(int num_threads) {
    constexpr int kRounds = 200000;
    std::vector<long long> sums(static_cast<std::size_t>(num_threads));
    double best = 0;
    for (int attempt = 0; attempt < 5; ++attempt) {
        const auto start = std::chrono::steady_clock::now();
        dm2::parallel_blocks(num_threads, 1, num_threads, [&](std::ptrdiff_t thread, std::ptrdiff_t) {
            std::vector<std::uint8_t> codes(kBuffer);
            for (std::size_t t = 0; t < codes.size(); ++t) codes[t] = static_cast<std::uint8_t>(t * 37);
            sums[thread] = bare(codes.data(), kRounds);
        });
        const double rate = static_cast<double>(num_threads) * kRounds * (kBuffer / 32) / seconds(start);
        if (sums[0] > 0) best = std::max(best, rate);
    }
    return best;
}
#endif

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 2) throw std::runtime_error("usage: limit FEATURES.npy [K [THREADS]]");
    const std::ptrdiff_t k = argc > 2 ? std::stol(argv[2]) : 10;
    const int num_threads = argc > 3 ? std::stoi(argv[3]) : static_cast<int>(std::thread::hardware_concurrency());
    std::ptrdiff_t m = 0, d = 0;
    const std::vector<float> x = load(argv[1], m, d);
    std::vector<float> scale;
    std::vector<std::int64_t> ids;
    for (std::ptrdiff_t i = 0; i < m; ++i) {
        double square = 0;
        for (std::ptrdiff_t t = 0; t < d; ++t) square += static_cast<double>(x[i * d + t]) * x[i * d + t];
        scale.push_back(square > 0 ? static_cast<float>(1 / std::sqrt(square)) : 0.0f);
        ids.push_back(i);
    }
    const dm2::Rows<float> rows{x.data(), m, d, d, scale.data()};
    const float w = 0.5f / static_cast<float>(d);
    std::vector<float> distances(static_cast<std::size_t>(m * k), std::numeric_limits<float>::infinity());
    std::vector<std::int64_t> indices(distances.size(), std::numeric_limits<std::int64_t>::max());
    const auto start = std::chrono::steady_clock::now();
    const std::vector<dm2::Stage> stages =
        dm2::knn<float>({rows, ids.data(), rows, ids.data(), w, w}, {m, k, distances.data(), indices.data()},
                        {false, {}, dm2::scanner(dm2::Isa::automatic)}, num_threads, [](double) {});
    const double took = seconds(start), pairs = static_cast<double>(m) * static_cast<double>(m - 1) / 2;

    std::printf("%td x %td, k = %td, %d threads: %.2f s for %.3g pairs\n\n", m, d, k, num_threads, took, pairs);
    std::printf("| check | pairs that meet it | of all, %% | SAD instructions | bytes of codes |\n");
    std::printf("| --- | --- | --- | --- | --- |\n");
    double sads = 0;
    for (const dm2::Stage& stage : stages) {
        const double met = static_cast<double>(stage.pairs), own = met * static_cast<double>(stage.bytes) / 32;
        const std::string check = stage.bytes ? std::to_string(stage.bytes) + "-byte codes" : "distance";
        std::printf("| %s | %.3g | %.2f | %.3g | %.3g |\n", check.c_str(), met, 100 * met / pairs, own, 32 * own);
        sads += own;
    }
    std::printf("\nSADs of 32 bytes: %.3g, %.3g a second (%.3g bytes a second)\n", sads, sads / took, 32 * sads / took);
#ifdef DM2_X86
    const double rate = bare_rate(num_threads);
    std::printf("A bare loop of the instruction: %.3g a second (%.3g bytes a second) on the same threads, so\n", rate,
                32 * rate);
    std::printf("the SADs alone need %.2f s, %.0f %% of the whole.\n", sads / rate, 100 * sads / rate / took);
#endif
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
