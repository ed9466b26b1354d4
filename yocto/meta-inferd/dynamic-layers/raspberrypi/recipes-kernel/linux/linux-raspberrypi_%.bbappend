require ${INFERD_FILES}/linux/inferd-kernel.inc
