/* A stand-in for NVIDIA's driver library with one GPU. STUB_NVML names what is out of order, as a list of words. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };
typedef void *Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } Process;

static int whole, part; /* their addresses are the handles of the GPU and of a part of it */
static unsigned long long millijoules = 1000000;

static int is(const char *word) {
    const char *words = getenv("STUB_NVML");
    return words && strstr(words, word) != NULL;
}

int nvmlInitWithFlags(unsigned int flags) { return is("no_driver") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Not Supported"; }
int nvmlSystemGetDriverVersion(char *text, unsigned int length) { strncpy(text, "570.00.01", length); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device *device) { *device = &whole; return SUCCESS; }

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    *device = strncmp(uuid, "MIG-", 4) == 0 ? (Device)&part : (Device)&whole;
    return SUCCESS;
}

int nvmlDeviceGetName(Device device, char *text, unsigned int length) {
    strncpy(text, device == &part ? "NVIDIA A100-SXM4-80GB MIG 1g.10gb" : "NVIDIA A100-SXM4-80GB", length);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    memory->total = (device == &part ? 9728ULL : 81920ULL) << 20;
    memory->used = 1ULL << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device device, unsigned long long *energy) {
    if (is("no_energy") || device == &part) return NOT_SUPPORTED;
    *energy = millijoules += 150000; /* every reading is 150 J after the one before */
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device device, Utilization *rates) {
    if (device == &part) return NOT_SUPPORTED;
    rates->gpu = 80;
    rates->memory = 40;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *reasons) {
    /* power cap and hardware thermal, power cap alone, or idle */
    *reasons = is("throttled") ? 0x44 : is("power_limit") ? 0x4 : 0x1;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device device, int type, unsigned int *mhz) { *mhz = 1410; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(Device device, unsigned int *milliwatts) { *milliwatts = 330000; return SUCCESS; }

int nvmlDeviceGetPowerManagementDefaultLimit(Device device, unsigned int *milliwatts) {
    *milliwatts = 400000;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned int *count, Process *processes) {
    unsigned int running = is("second_process") ? 2 : 1;
    if (*count < running) {
        *count = running;
        return INSUFFICIENT_SIZE;
    }
    *count = running;
    processes[0] = (Process){(unsigned int)getpid(), 1 << 28, 0, 0};
    if (running == 2) processes[1] = (Process){4242, 1 << 28, 0, 0};
    return SUCCESS;
}
