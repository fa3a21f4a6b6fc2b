/* Any version will do: the programs use nothing but UAPI, and the loader asks the running kernel itself. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)
