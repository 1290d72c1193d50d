/* Threads: POSIX or Windows. If one cannot start, the caller does its work. */
#ifndef ORGAN_THREADS_H
#define ORGAN_THREADS_H

#if defined(_WIN32)
#include <process.h>
#include <windows.h>
typedef HANDLE organ_thread;
#define ORGAN_THREAD(name, argument) static unsigned __stdcall name(void *argument)
#define ORGAN_THREAD_END return 0
/* Returns 0 if the thread runs. */
static int organ_thread_start(organ_thread *thread, unsigned(__stdcall *body)(void *), void *argument)
{
    *thread = (HANDLE)_beginthreadex(NULL, 0, body, argument, 0, NULL);
    return *thread == NULL;
}
static void organ_thread_join(organ_thread thread)
{
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}
#else
#include <pthread.h>
typedef pthread_t organ_thread;
#define ORGAN_THREAD(name, argument) static void *name(void *argument)
#define ORGAN_THREAD_END return NULL
static int organ_thread_start(organ_thread *thread, void *(*body)(void *), void *argument)
{
    return pthread_create(thread, NULL, body, argument);
}
static void organ_thread_join(organ_thread thread)
{
    pthread_join(thread, NULL);
}
#endif

#endif
