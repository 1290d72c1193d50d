// Classifies slices with a bundle, on onnxruntime's C API: classify BUNDLE IMAGE... prints label, probability and path.
// IMAGE is a binary PGM (P5) of 8 or 16 bits, or the size * size bytes of a gray slice. Unlike organ-infer, this
// program does not verify the bundle. docs/deploy/other_languages.md explains each step.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <onnxruntime_c_api.h>
#include <stdexcept>
#include <string>
#include <vector>
using std::string, std::vector;
using Error = std::runtime_error;

static string read_file(const string &path) {
    std::ifstream file(path, std::ios::binary);
    const string content(std::istreambuf_iterator<char>(file), {});
    return content.empty() ? throw Error(path + ": cannot be read") : content;
}

// The values of a JSON file by path: /input/size, /members/0/file, /task/classes/10.
struct Manifest : std::map<string, string> {
    const string &text(const string &path) const {
        return count(path) ? at(path) : throw Error("manifest.json: no key " + path);
    }
    double number(const string &path) const { return std::stod(text(path)); }
    // Reads the value at s[i] and returns it. Escapes stay, because no value that is used here has any.
    string parse(const string &s, size_t &i, const string &path = "") {
        auto next = [&] {
            i = s.find_first_not_of(" \n\r\t,:", i);
            return i < s.size() ? s[i] : throw Error("manifest.json: not complete");
        };
        if (next() == '{' || s[i] == '[') {
            const bool named = s[i++] == '{';
            for (int n = 0; next() != '}' && s[i] != ']'; ++n)
                parse(s, i, path + "/" + (named ? parse(s, i) : std::to_string(n)));
            return s.substr(i++, 0);
        }
        const bool quoted = s[i] == '"';
        string value, ends = quoted ? "\"" : " \n\r\t,]}";
        for (i += quoted; i < s.size() && ends.find(s[i]) == ends.npos; value += s[i++])
            i += s[i] == '\\' && i + 1 < s.size();
        i += quoted;
        return (*this)[path] = value;
    }
};

// For each output pixel of an axis, the input pixels with their weights.
static vector<vector<std::pair<int, double>>> weights(int in, int out, const string &resample) {
    vector<vector<std::pair<int, double>>> result(out);
    for (int o = 0; o < out; ++o) {
        const double x = (o + 0.5) * in / out - 0.5, a = -0.75;
        if (resample == "area" && in > out)
            for (int p = o * in / out; p * out < (o + 1) * in; ++p)
                result[o].emplace_back(p, (std::min((p + 1) * out, (o + 1) * in) - std::max(p * out, o * in)) / double(in));
        else
            for (int j = int(std::floor(x)) - 1; j <= x + 2; ++j) {
                const double d = std::fabs(x - j), linear = std::max(0.0, 1 - d);
                const double cubic = d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : ((d - 5) * d + 8) * d * a - 4 * a;
                result[o].emplace_back(std::clamp(j, 0, in - 1), resample == "cubic" ? cubic : linear);
            }
    }
    return result;
}

// Reads an image into the network's input, size * size numbers.
static void pack(const string &path, const Manifest &manifest, vector<float> &packed) {
    const string data = read_file(path), resample = manifest.text("/input/resample");
    int size = int(manifest.number("/input/size")), width = size, height = size, largest = 255, start = 0;
    if (std::sscanf(data.c_str(), "P5 %5d %5d %5d%n", &width, &height, &largest, &start) == 3)
        ++start;
    const size_t bytes = largest == 65535 ? 2 : 1, expected = start + bytes * width * height;
    if (width < 1 || height < 1 || (bytes == 1 && largest != 255) || data.size() != expected)
        throw Error(path + ": expected a binary PGM without comments, of 8 or 16 bits, or size * size bytes");
    const auto rows = weights(height, size, resample), columns = weights(width, size, resample);
    const float mean = float(manifest.number("/input/mean")), std = float(manifest.number("/input/std"));
    packed.clear();
    for (const auto &row : rows)
        for (const auto &column : columns) {
            double sum = 0;
            for (auto [y, down] : row)
                for (auto [x, across] : column) {
                    auto p = (const unsigned char *)data.data() + start + (size_t(y) * width + x) * bytes;
                    sum += down * across * (bytes == 1 ? p[0] : p[0] * 256 + p[1]);
                }
            packed.push_back((float(std::clamp(sum / largest, 0.0, 1.0)) - mean) / std);
        }
}

int main(int argc, char **argv) try {
    if (argc < 3)
        throw Error("usage: classify BUNDLE IMAGE...");
    Manifest manifest;
    size_t start = 0, classes = 0;
    manifest.parse(read_file(string(argv[1]) + "/manifest.json"), start);
    while (manifest.count("/task/classes/" + std::to_string(classes)))
        ++classes;
    // no usage statistics, which newer versions send otherwise
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    const OrtApi *api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    auto check = [&](OrtStatus *status) { if (status) throw Error(api->GetErrorMessage(status)); };
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtMemoryInfo *memory;
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "classify", &env));
    check(api->DisableTelemetryEvents(env));
    check(api->CreateSessionOptions(&options));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    vector<OrtSession *> sessions;
    for (string file; manifest.count(file = "/members/" + std::to_string(sessions.size()) + "/file");) {
        const string graph = read_file(string(argv[1]) + "/" + manifest.text(file));
        check(api->CreateSessionFromArray(env, graph.data(), graph.size(), options, &sessions.emplace_back()));
    }
    // the networks read and write these numbers, whose shapes onnxruntime checks
    const double temperature = manifest.number("/temperature");
    const int64_t size = int64_t(manifest.number("/input/size"));
    vector<float> packed(size * size), answer(classes);
    auto tensor = [&](vector<float> &values, vector<int64_t> shape) {
        OrtValue *value;
        check(api->CreateTensorWithDataAsOrtValue(memory, values.data(), values.size() * sizeof(float), shape.data(),
                                                  shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
        return value;
    };
    OrtValue *images = tensor(packed, {1, 1, size, size}), *answers = tensor(answer, {1, int64_t(classes)});
    for (int k = 2; k < argc; ++k) {
        pack(argv[k], manifest, packed);
        vector<double> mean(classes);
        for (size_t m = 0; m < sessions.size(); ++m) {
            const string kind = manifest.text("/members/" + std::to_string(m) + "/output");
            const char *input = "images", *output = kind.c_str();
            check(api->Run(sessions[m], nullptr, &input, &images, 1, &output, 1, &answers));
            // a softmax, unless the network has applied it
            double sum = 0, largest = *std::max_element(answer.begin(), answer.end());
            for (float &term : answer)
                sum += term = kind == "logits" ? float(std::exp((term - largest) / temperature)) : term;
            for (size_t c = 0; c < classes; ++c)
                mean[c] += answer[c] / sum / double(sessions.size());
        }
        const size_t best = std::max_element(mean.begin(), mean.end()) - mean.begin();
        std::printf("%-12s %.6f %s\n", manifest.text("/task/classes/" + std::to_string(best)).c_str(), mean[best], argv[k]);
    }
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 2;
}
