# What U-Boot does: it starts the system that `bootstate` chooses, or once the one that is on trial there. scripts/lib/uboot.py makes
# boot.scr of this file, and says how a record looks. U-Boot calculates in hexadecimal; `generation` is decimal.
#
# A trial is taken out of the record before it begins: whatever ends it, the next start is the chosen system's again.
# Nothing but a record's three variables is taken from it: no other one is set by who can write `bootstate`.

# Whoever found this script has set these; a firmware that only has this medium need not.
if test -z "${devtype}"; then setenv devtype virtio; setenv devnum 0; fi
setenv buffer ${pxefile_addr_r}
# Kernel, initramfs and device tree stay where they are loaded to: the end of the memory is no place for them, see `mem=`.
setenv initrd_high ffffffffffffffff
setenv fdt_high ffffffffffffffff

setenv newest 0
setenv best_chosen a
setenv best_try
setenv next_at 0
if part start ${devtype} ${devnum} bootstate base; then
    for at in 0 8; do
        setenv generation; setenv chosen; setenv try
        setexpr sector ${base} + ${at}
        if ${devtype} read ${buffer} ${sector} 1 && env import -c ${buffer} 200 generation chosen try; then
            if test "${chosen}" = a || test "${chosen}" = b; then
                if test -z "${try}" || test "${try}" = a || test "${try}" = b; then
                    if test "${generation}" -gt "${newest}"; then
                        setenv newest ${generation}; setenv best_chosen ${chosen}; setenv best_try ${try}
                        if test ${at} = 0; then setenv next_at 8; else setenv next_at 0; fi
                    fi
                fi
            fi
        fi
    done
else
    echo "inferd: there is no partition bootstate"
fi

setenv slot ${best_chosen}
setenv trial
if test "${best_try}" = a || test "${best_try}" = b; then
    # generation + 1: where adding one leaves an `a` in a decimal place, six more carry it into the next.
    setexpr generation ${newest} + 1
    for unit in 1 10 100 1000 10000 100000 1000000 10000000 100000000; do
        setexpr digit ${generation} / ${unit}
        setexpr digit ${digit} % 10
        if test ${digit} = a; then setexpr carry ${unit} * 6; setexpr generation ${generation} + ${carry}; fi
    done
    setenv chosen ${best_chosen}
    setexpr sector ${base} + ${next_at}
    if env export -c -s 200 ${buffer} chosen generation && ${devtype} write ${buffer} ${sector} 1; then
        setenv slot ${best_try}
        setenv trial " inferd.try=1"
    else
        echo "inferd: bootstate cannot be written; system ${best_try} is not tried"
    fi
fi

# The command line is a line of a file: without its end it is a string.
setenv start_slot 'part number ${devtype} ${devnum} boot-${slot} number && load ${devtype} ${devnum}:${number} ${buffer} cmdline.txt && setexpr end ${buffer} + ${filesize} && setexpr end ${end} - 1 && mw.b ${end} 0 && setexpr.s line *${buffer} && load ${devtype} ${devnum}:${number} ${kernel_addr_r} kernel && load ${devtype} ${devnum}:${number} ${ramdisk_addr_r} initramfs && setenv bootargs "${line} inferd.slot=${slot}${trial}" && booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr}'

echo "inferd: U-Boot starts system ${slot}${trial}"
run start_slot
echo "inferd: system ${slot} cannot be loaded; U-Boot starts the other one"
setenv trial
if test ${slot} = a; then setenv slot b; else setenv slot a; fi
run start_slot
echo "inferd: no system can be loaded: write an image to the medium again"
sleep 10
reset
