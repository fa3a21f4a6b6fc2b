/* BCC asks for the running kernel's configuration; only this answer matters to it. */
#define CONFIG_BPF_SYSCALL 1
