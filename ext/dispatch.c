/* Selects the kernels for this processor. */
#include "pack.h"

#include <string.h>

#if defined(ORGAN_X86) && defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>

static int has(int level)
{
    int leaf1[4], leaf7[4];
    __cpuid(leaf1, 0);
    if (leaf1[0] < 7)
        return 0;
    __cpuid(leaf1, 1);
    __cpuidex(leaf7, 7, 0);
    /* OSXSAVE, FMA */
    if (!(leaf1[2] >> 27 & 1) || !(leaf1[2] >> 12 & 1))
        return 0;
    const unsigned long long saved = _xgetbv(0);
    /* the operating system saves the ymm registers; AVX2 */
    if ((saved & 0x6) != 0x6 || !(leaf7[1] >> 5 & 1))
        return 0;
    /* AVX-512 F, DQ, BW, VL */
    return level == 1 || ((saved & 0xe6) == 0xe6 && (leaf7[1] >> 16 & 1) && (leaf7[1] >> 17 & 1) &&
                          (leaf7[1] >> 30 & 1) && (leaf7[1] >> 31 & 1));
}
#elif defined(ORGAN_X86)
static int has(int level)
{
    __builtin_cpu_init();
    if (level == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has(1) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

static int available(const struct organ_kernels *kernels[3])
{
    int count = 0;
    kernels[count++] = &organ_portable;
#ifdef ORGAN_X86
    if (has(1))
        kernels[count++] = &organ_avx2;
    if (has(2))
        kernels[count++] = &organ_avx512;
#endif
    return count;
}

static const struct organ_kernels *current;

int organ_levels(const char *names[3])
{
    const struct organ_kernels *kernels[3];
    const int count = available(kernels);
    for (int i = 0; i < count; i++)
        names[i] = kernels[i]->name;
    return count;
}

const struct organ_kernels *organ_level(void)
{
    if (current == NULL) {
        const struct organ_kernels *kernels[3];
        current = kernels[available(kernels) - 1];
    }
    return current;
}

int organ_set_level(const char *name)
{
    const struct organ_kernels *kernels[3];
    const int count = available(kernels);
    for (int i = 0; i < count; i++)
        if (strcmp(kernels[i]->name, name) == 0) {
            current = kernels[i];
            return 0;
        }
    return -1;
}
