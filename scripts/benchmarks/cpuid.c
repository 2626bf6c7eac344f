/* If preloaded, hides instructions beyond AVX2 from a process, to compare programs that are all limited to AVX2.
 *
 * JAX's products come from a library that has no setting for this and asks the processor with `cpuid`. If Linux and the
 * processor can make this instruction fail (cpuid_fault in /proc/cpuinfo), it fails, and the handler below answers
 * instead. Threads and children inherit this. No other code may handle SIGSEGV.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))
/* Bits of leaf 7 (Intel's manual, volume 2, CPUID): all features of AVX512 and AMX, and what depends on them. */
#define HIDDEN_EBX (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
#define HIDDEN_ECX (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))
#define HIDDEN_EDX (BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25))
/* Its first subleaf is hidden except AVX-VNNI, which is kept with KEEP_AVX_VNNI only. */
#ifdef KEEP_AVX_VNNI
#define KEPT BIT(4)
#else
#define KEPT 0
#endif

static void answer(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = registers[REG_RAX], subleaf = registers[REG_RCX], eax, ebx, ecx, edx;
    if (code[0] != 0x0f || code[1] != 0xa2) {
        signal(SIGSEGV, SIG_DFL); /* a real fault happens again, and ends the process */
        return;
    }
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 7 && subleaf == 0) {
        ebx &= ~HIDDEN_EBX;
        ecx &= ~HIDDEN_ECX;
        edx &= ~HIDDEN_EDX;
    } else if (leaf == 7) {
        eax &= KEPT;
        ebx = ecx = edx = 0;
    }
    registers[REG_RAX] = eax;
    registers[REG_RBX] = ebx;
    registers[REG_RCX] = ecx;
    registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void)
{
    struct sigaction handler = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &handler, 0);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        static const char words[] = "cpuid: this processor cannot hide instructions\n";
        (void)!write(2, words, sizeof words - 1);
        _exit(78);
    }
}
