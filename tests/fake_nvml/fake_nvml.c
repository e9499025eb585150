/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests: what it answers is written in a text file.
 *
 * FAKE_NVML_STATE names the file. It is read anew whenever it was replaced (write another, rename it over the
 * old one), so memory changes, devices vanish and errors happen while an observer runs. One fact per line:
 *
 *     driver 580.65.06           nvml 13.580.65.06         cuda 13000
 *     init_error CODE            what nvmlInit returns
 *     lacks nvmlSomeFunction     an old driver: this function answers "function not found"
 *     gpu GPU-UUID               begins a card; cards are numbered in the order of the file
 *     slice MIG-UUID GI CI       begins a MIG device of the last card
 *
 * and of the card or slice begun last, sizes in bytes:
 *
 *     name NVIDIA H100 80GB HBM3   total N   used N   reserved N   capability 9.0   bus 0000:1b:00.0
 *     persistence 0|1   mig 0|1    recovery N (a GPU recovery action)   error CODE (every call answers it)
 *     process PID BYTES [graphics] BYTES is N/A where the driver does not tell
 *     xid NUMBER SERIAL            an event each time SERIAL changes to another number than it was registered with
 *
 * Rules of this file: no NVIDIA header; the structures are those of nvml.h, as pynvml declares them. One lock
 * around each call. A handle means the same device for ever: one whose device has left the file is lost.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, GPU_IS_LOST = 15, UNKNOWN = 999
};
enum { DEVICES_MAX = 128, PROCESSES_MAX = 256, LACKS_MAX = 16, TEXT_MAX = 96, NONE = 0xFFFFFFFFu };
enum { XID_EVENT = 0x8, FIELD_RECOVERY_ACTION = 230, VALUE_UNSIGNED_INT = 1, EVENT_POLL_US = 5000 };
#define NOT_AVAILABLE 0xFFFFFFFFFFFFFFFFull

typedef unsigned int u32;
typedef unsigned long long u64;

typedef struct { u64 total, free, used; } Memory;
typedef struct { u32 version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { u32 pid; u64 used; u32 gi, ci; } Process;
typedef struct { char legacy[16]; u32 domain, bus, device, device_id, subsystem_id; char id[32]; } Pci;
typedef struct { u32 field, scope; long long timestamp, latency; u32 type, result; union { u32 number; u64 wide; } value; } Field;

typedef struct {
    char uuid[TEXT_MAX], name[TEXT_MAX], bus[TEXT_MAX];
    u64 total, used, reserved;
    long major, minor, persistence, mig, recovery, error, xid, xid_serial;
    int card; /* the index of the card that a slice is of, or its own */
    int is_slice;
    u32 gi, ci, process_count;
    Process processes[PROCESSES_MAX];
    int graphics[PROCESSES_MAX];
} Device;

typedef struct { char uuid[TEXT_MAX]; } Slot; /* what a handle points to */
typedef Slot *Handle;
typedef struct { Handle device; u64 type, data; u32 gi, ci; } Event;
typedef struct { int watched[DEVICES_MAX]; long serial[DEVICES_MAX]; } EventSet;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Slot slots[DEVICES_MAX];
static Device devices[DEVICES_MAX];
static int device_count, initialised;
static long init_error, cuda_version;
static char driver[TEXT_MAX], nvml_version[TEXT_MAX], lacks[LACKS_MAX][TEXT_MAX];
static int lacks_count;
static struct stat read_at;

/* -- the state file ------------------------------------------------------------------------------------- */

static void begin_device(const char *uuid, int is_slice) {
    if (device_count == DEVICES_MAX) abort();
    Device *device = &devices[device_count];
    memset(device, 0, sizeof *device);
    snprintf(device->uuid, TEXT_MAX, "%s", uuid);
    strcpy(device->name, "NVIDIA Fake GPU");
    strcpy(device->bus, "0000:00:00.0");
    device->major = 9;
    device->recovery = -1;
    device->is_slice = is_slice;
    device->gi = device->ci = NONE;
    device->card = device_count;
    while (is_slice && device->card && devices[device->card].is_slice) device->card--;
    device_count++;
}

static void add_process(Device *device, const char *value) {
    char held[TEXT_MAX] = "0", kind[TEXT_MAX] = "";
    if (device->process_count == PROCESSES_MAX) abort();
    u32 at = device->process_count++;
    Process *process = &device->processes[at];
    sscanf(value, "%u %95s %95s", &process->pid, held, kind);
    process->used = strcmp(held, "N/A") ? strtoull(held, NULL, 10) : NOT_AVAILABLE;
    process->gi = device->gi;
    process->ci = device->ci;
    device->graphics[at] = !strcmp(kind, "graphics");
}

static void read_fact(const char *key, const char *value) {
    Device *device = device_count ? &devices[device_count - 1] : NULL;
    long number = atol(value);
    if (!strcmp(key, "driver")) snprintf(driver, TEXT_MAX, "%s", value);
    else if (!strcmp(key, "nvml")) snprintf(nvml_version, TEXT_MAX, "%s", value);
    else if (!strcmp(key, "cuda")) cuda_version = number;
    else if (!strcmp(key, "init_error")) init_error = number;
    else if (!strcmp(key, "lacks") && lacks_count < LACKS_MAX) snprintf(lacks[lacks_count++], TEXT_MAX, "%s", value);
    else if (!strcmp(key, "gpu")) begin_device(value, 0);
    else if (!strcmp(key, "slice")) {
        char uuid[TEXT_MAX];
        u32 gi = 0, ci = 0;
        sscanf(value, "%95s %u %u", uuid, &gi, &ci);
        begin_device(uuid, 1);
        devices[device_count - 1].gi = gi;
        devices[device_count - 1].ci = ci;
    }
    else if (!device) return;
    else if (!strcmp(key, "name")) snprintf(device->name, TEXT_MAX, "%s", value);
    else if (!strcmp(key, "bus")) snprintf(device->bus, TEXT_MAX, "%s", value);
    else if (!strcmp(key, "total")) device->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "used")) device->used = strtoull(value, NULL, 10);
    else if (!strcmp(key, "reserved")) device->reserved = strtoull(value, NULL, 10);
    else if (!strcmp(key, "capability")) sscanf(value, "%ld.%ld", &device->major, &device->minor);
    else if (!strcmp(key, "persistence")) device->persistence = number;
    else if (!strcmp(key, "mig")) device->mig = number;
    else if (!strcmp(key, "recovery")) device->recovery = number;
    else if (!strcmp(key, "error")) device->error = number;
    else if (!strcmp(key, "process")) add_process(device, value);
    else if (!strcmp(key, "xid")) sscanf(value, "%ld %ld", &device->xid, &device->xid_serial);
}

/* Read the file if it is another than last time. */
static int look(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat now;
    if (!path || stat(path, &now)) return DRIVER_NOT_LOADED;
    if (now.st_ino == read_at.st_ino && now.st_size == read_at.st_size
        && now.st_mtim.tv_sec == read_at.st_mtim.tv_sec && now.st_mtim.tv_nsec == read_at.st_mtim.tv_nsec)
        return SUCCESS;
    FILE *file = fopen(path, "r");
    if (!file) return DRIVER_NOT_LOADED;
    device_count = lacks_count = 0;
    init_error = 0;
    cuda_version = 13000;
    strcpy(driver, "580.65.06");
    strcpy(nvml_version, "13.580.65.06");
    char line[512];
    while (fgets(line, sizeof line, file)) {
        char *key = line + strspn(line, " \t");
        key[strcspn(key, "\r\n")] = 0;
        char *value = key + strcspn(key, " \t");
        if (*value) *value++ = 0;
        if (*key && *key != '#') read_fact(key, value + strspn(value, " \t"));
    }
    fclose(file);
    read_at = now;
    return SUCCESS;
}

static Handle handle_of(const Device *device) {
    for (int at = 0; at < DEVICES_MAX; at++) {
        if (!slots[at].uuid[0]) strcpy(slots[at].uuid, device->uuid);
        if (!strcmp(slots[at].uuid, device->uuid)) return &slots[at];
    }
    abort();
}

static int ready(const char *function) {
    int result = look();
    if (result) return result;
    if (!initialised) return UNINITIALIZED;
    for (int at = 0; at < lacks_count; at++)
        if (!strcmp(lacks[at], function)) return FUNCTION_NOT_FOUND;
    return SUCCESS;
}

static int find(const char *function, Handle handle, Device **found) {
    int result = ready(function);
    if (result) return result;
    if (handle < slots || handle >= slots + DEVICES_MAX) return INVALID_ARGUMENT;
    for (int at = 0; at < device_count; at++)
        if (!strcmp(devices[at].uuid, handle->uuid)) {
            *found = &devices[at];
            long error = devices[at].error ? devices[at].error : devices[devices[at].card].error;
            return (int)error;
        }
    return GPU_IS_LOST;
}

static int text(char *room, u32 length, const char *what) {
    if (strlen(what) >= length) return INSUFFICIENT_SIZE;
    strcpy(room, what);
    return SUCCESS;
}

/* Each function of a device: look it up under the lock, then answer. `device` is what the handle means. */
#define OF_DEVICE(function, parameters, answer)                                                                        \
    int function parameters {                                                                                          \
        Device *device = NULL;                                                                                         \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = find(#function, handle, &device);                                                                 \
        if (!result) answer;                                                                                           \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }
#define OF_SYSTEM(function, parameters, answer)                                                                        \
    int function parameters {                                                                                          \
        pthread_mutex_lock(&lock);                                                                                     \
        int result = ready(#function);                                                                                 \
        if (!result) answer;                                                                                           \
        pthread_mutex_unlock(&lock);                                                                                   \
        return result;                                                                                                 \
    }

/* -- the library and its cards ---------------------------------------------------------------------------- */

static int begin(void) {
    pthread_mutex_lock(&lock);
    int result = look();
    if (!result) result = (int)init_error;
    if (!result) initialised++;
    pthread_mutex_unlock(&lock);
    return result;
}

int nvmlInit_v2(void) { return begin(); }
int nvmlInitWithFlags(u32 flags) { (void)flags; return begin(); }

int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    int result = initialised ? SUCCESS : UNINITIALIZED;
    if (initialised) initialised--;
    pthread_mutex_unlock(&lock);
    return result;
}

const char *nvmlErrorString(int result) {
    switch (result) {
    case SUCCESS: return "Success";
    case NOT_FOUND: return "Not Found";
    case TIMEOUT: return "Timeout";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "an error of the fake NVML";
    }
}

static u32 card_count(void) {
    u32 count = 0;
    for (int at = 0; at < device_count; at++) count += !devices[at].is_slice;
    return count;
}

static int handle_by_index(u32 index, Handle *found) {
    for (int at = 0; at < device_count; at++)
        if (!devices[at].is_slice && !index--) {
            *found = handle_of(&devices[at]);
            return (int)devices[at].error;
        }
    return INVALID_ARGUMENT;
}

static int handle_by_uuid(const char *uuid, Handle *found) {
    for (int at = 0; at < device_count; at++)
        if (!strcmp(devices[at].uuid, uuid)) {
            *found = handle_of(&devices[at]);
            return (int)devices[at].error;
        }
    return NOT_FOUND;
}

static int handle_by_bus(const char *bus, Handle *found) {
    size_t length = strlen(bus);
    for (int at = 0; at < device_count; at++)
        if (!devices[at].is_slice && length >= 12 && !strcasecmp(devices[at].bus, bus + length - 12)) {
            *found = handle_of(&devices[at]);
            return (int)devices[at].error;
        }
    return NOT_FOUND;
}

OF_SYSTEM(nvmlSystemGetDriverVersion, (char *room, u32 length), result = text(room, length, driver))
OF_SYSTEM(nvmlSystemGetNVMLVersion, (char *room, u32 length), result = text(room, length, nvml_version))
OF_SYSTEM(nvmlSystemGetCudaDriverVersion, (int *version), *version = (int)cuda_version)
OF_SYSTEM(nvmlSystemGetCudaDriverVersion_v2, (int *version), *version = (int)cuda_version)
OF_SYSTEM(nvmlDeviceGetCount_v2, (u32 *count), *count = card_count())
OF_SYSTEM(nvmlDeviceGetHandleByIndex_v2, (u32 index, Handle *found), result = handle_by_index(index, found))
OF_SYSTEM(nvmlDeviceGetHandleByUUID, (const char *uuid, Handle *found), result = handle_by_uuid(uuid, found))
OF_SYSTEM(nvmlDeviceGetHandleByPciBusId_v2, (const char *bus, Handle *found), result = handle_by_bus(bus, found))

/* -- what a device is -------------------------------------------------------------------------------------- */

static void fill_pci(const Device *device, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    sscanf(device->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->legacy, sizeof pci->legacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
    snprintf(pci->id, sizeof pci->id, "%08X:%02X:%02X.0", pci->domain, pci->bus & 0xff, pci->device & 0xff);
}

static u32 card_index(const Device *device) {
    u32 index = 0;
    for (int at = 0; at < device->card; at++) index += !devices[at].is_slice;
    return index;
}

OF_DEVICE(nvmlDeviceGetUUID, (Handle handle, char *room, u32 length), result = text(room, length, device->uuid))
OF_DEVICE(nvmlDeviceGetName, (Handle handle, char *room, u32 length), result = text(room, length, device->name))
OF_DEVICE(nvmlDeviceGetIndex, (Handle handle, u32 *index), *index = card_index(device))
OF_DEVICE(nvmlDeviceGetMinorNumber, (Handle handle, u32 *number), *number = card_index(device))
OF_DEVICE(nvmlDeviceGetPciInfo_v3, (Handle handle, Pci *pci), fill_pci(device, pci))
OF_DEVICE(nvmlDeviceGetPersistenceMode, (Handle handle, u32 *mode), *mode = (u32)device->persistence)
OF_DEVICE(nvmlDeviceGetCudaComputeCapability, (Handle handle, int *major, int *minor),
          (*major = (int)device->major, *minor = (int)device->minor))

/* -- slices ------------------------------------------------------------------------------------------------ */

static u32 slice_count(const Device *card) {
    u32 count = 0;
    for (int at = 0; at < device_count; at++) count += devices[at].is_slice && &devices[devices[at].card] == card;
    return count;
}

static int slice_by_index(const Device *card, u32 index, Handle *found) {
    for (int at = 0; at < device_count; at++)
        if (devices[at].is_slice && &devices[devices[at].card] == card && !index--) {
            *found = handle_of(&devices[at]);
            return SUCCESS;
        }
    return NOT_FOUND;
}

OF_DEVICE(nvmlDeviceGetMigMode, (Handle handle, u32 *current, u32 *pending), *current = *pending = (u32)device->mig)
/* As the real one: as many as there may be at most, not as many as there are. */
OF_DEVICE(nvmlDeviceGetMaxMigDeviceCount, (Handle handle, u32 *count),
          *count = device->mig ? (slice_count(device) > 7 ? slice_count(device) : 7) : 0)
OF_DEVICE(nvmlDeviceGetMigDeviceHandleByIndex, (Handle handle, u32 index, Handle *found),
          result = slice_by_index(device, index, found))
OF_DEVICE(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, (Handle handle, Handle *card),
          *card = handle_of(&devices[device->card]))
OF_DEVICE(nvmlDeviceIsMigDeviceHandle, (Handle handle, u32 *is_slice), *is_slice = (u32)device->is_slice)
OF_DEVICE(nvmlDeviceGetGpuInstanceId, (Handle handle, u32 *id), *id = device->gi)
OF_DEVICE(nvmlDeviceGetComputeInstanceId, (Handle handle, u32 *id), *id = device->ci)

/* -- memory and processes ---------------------------------------------------------------------------------- */

/* Version 1 counts what the driver keeps for itself as used; version 2 tells it apart. */
static void fill_memory(const Device *device, Memory *memory) {
    memory->total = device->total;
    memory->used = device->used + device->reserved;
    memory->free = device->total - memory->used;
}

static void fill_memory_v2(const Device *device, MemoryV2 *memory) {
    memory->total = device->total;
    memory->reserved = device->reserved;
    memory->used = device->used;
    memory->free = device->total - device->used - device->reserved;
}

static int fill_processes(const Device *device, int graphics, u32 *count, Process *room) {
    u32 size = *count, found = 0;
    for (int at = 0; at < device_count; at++) {
        const Device *other = &devices[at]; /* a card counts the processes of its slices, too */
        if (other != device && (device->is_slice || other->card != device->card)) continue;
        for (u32 each = 0; each < other->process_count; each++) {
            if (other->graphics[each] != graphics) continue;
            if (found < size && room) room[found] = other->processes[each];
            found++;
        }
    }
    *count = found;
    return found > size || (found && !room) ? INSUFFICIENT_SIZE : SUCCESS;
}

static void fill_fields(const Device *device, int count, Field *fields) {
    for (int at = 0; at < count; at++) {
        int told = fields[at].field == FIELD_RECOVERY_ACTION && device->recovery >= 0;
        fields[at].result = told ? SUCCESS : NOT_SUPPORTED;
        fields[at].type = VALUE_UNSIGNED_INT;
        fields[at].value.number = told ? (u32)device->recovery : 0;
    }
}

OF_DEVICE(nvmlDeviceGetMemoryInfo, (Handle handle, Memory *memory), fill_memory(device, memory))
OF_DEVICE(nvmlDeviceGetMemoryInfo_v2, (Handle handle, MemoryV2 *memory), fill_memory_v2(device, memory))
OF_DEVICE(nvmlDeviceGetComputeRunningProcesses_v2, (Handle handle, u32 *count, Process *room),
          result = fill_processes(device, 0, count, room))
OF_DEVICE(nvmlDeviceGetComputeRunningProcesses_v3, (Handle handle, u32 *count, Process *room),
          result = fill_processes(device, 0, count, room))
OF_DEVICE(nvmlDeviceGetGraphicsRunningProcesses_v3, (Handle handle, u32 *count, Process *room),
          result = fill_processes(device, 1, count, room))
OF_DEVICE(nvmlDeviceGetFieldValues, (Handle handle, int count, Field *fields), fill_fields(device, count, fields))

/* -- events ------------------------------------------------------------------------------------------------ */

static void watch(EventSet *set, Handle handle, const Device *device) {
    set->watched[handle - slots] = 1;
    set->serial[handle - slots] = device->xid_serial;
}

OF_DEVICE(nvmlDeviceGetSupportedEventTypes, (Handle handle, u64 *types), *types = XID_EVENT)
OF_DEVICE(nvmlDeviceRegisterEvents, (Handle handle, u64 types, EventSet *set), ((void)types, watch(set, handle, device)))

int nvmlEventSetCreate(EventSet **set) { return (*set = calloc(1, sizeof **set)) ? SUCCESS : UNKNOWN; }
int nvmlEventSetFree(EventSet *set) { free(set); return SUCCESS; }

static int next_event(EventSet *set, Event *event) {
    int result = ready("nvmlEventSetWait_v2");
    if (result) return result;
    for (int at = 0; at < device_count; at++) {
        Handle handle = handle_of(&devices[at]);
        long slot = handle - slots;
        if (!set->watched[slot] || set->serial[slot] == devices[at].xid_serial) continue;
        set->serial[slot] = devices[at].xid_serial;
        *event = (Event){handle, XID_EVENT, (u64)devices[at].xid, NONE, NONE};
        return SUCCESS;
    }
    return TIMEOUT;
}

int nvmlEventSetWait_v2(EventSet *set, Event *event, u32 timeout_ms) {
    for (u64 waited_us = 0;; waited_us += EVENT_POLL_US) {
        pthread_mutex_lock(&lock);
        int result = next_event(set, event);
        pthread_mutex_unlock(&lock);
        if (result != TIMEOUT || waited_us >= timeout_ms * 1000ull) return result;
        usleep(EVENT_POLL_US);
    }
}
