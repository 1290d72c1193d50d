/* Normalizes pixels without resampling, in plain C. The portable level uses it for all pixels, AVX2 for runs that
 * are too short for a vector. Included once per level, with TARGET and NAME(x) defined. */
#define NORMALIZE(name, type, value)                                                            \
    TARGET static void name(const struct organ_scale *scale, const type *restrict src,          \
                            float *restrict dst, size_t n)                                      \
    {                                                                                           \
        const struct organ_scale s = *scale;                                                    \
        const float depth = (float)s.depth;                                                     \
        if (s.inverse != 0.0f)                                                                  \
            for (size_t i = 0; i < n; i++)                                                      \
                dst[i] = ((float)(value(src[i])) / depth - s.mean) * s.inverse;                 \
        else                                                                                    \
            for (size_t i = 0; i < n; i++)                                                      \
                dst[i] = ((float)(value(src[i])) / depth - s.mean) / s.std;                     \
    }

#define AS_IS(v) (v)
#define WINDOWED(v) (((v) < s.low ? s.low : (v) > s.high ? s.high : (v)) - s.low)
NORMALIZE(NAME(plain_u8), uint8_t, AS_IS)
NORMALIZE(NAME(plain_u16), uint16_t, AS_IS)
NORMALIZE(NAME(plain_i16), int16_t, WINDOWED)
#undef WINDOWED
#undef AS_IS
#undef NORMALIZE
