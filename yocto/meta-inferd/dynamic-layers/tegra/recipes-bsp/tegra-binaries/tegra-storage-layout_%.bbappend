# boot, models-a, models-b and data behind the second root filesystem, on whichever medium that is: the card, or an NVMe.
do_compile:append:inferd-os () {
    for layout in external-flash.xml internal-flash.xml; do
        if [ -e $layout ] && grep -q '"APP_b"' $layout; then
            python3 -B ${INFERD_CHECKOUT}/scripts/lib/openembedded.py tegra ${INFERD_BOARD} $layout
            return
        fi
    done
    bbfatal "no storage layout has APP_b: USE_REDUNDANT_FLASH_LAYOUT_DEFAULT must be 1"
}
