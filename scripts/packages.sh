# Sourced by scripts/build and scripts/test: Debian packages, installed only when missing.

missing_packages() {
        local name
        for name in "$@"; do
                [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
        done
}

# install_missing PACKAGE...: nothing to do without a missing one. Packages must not start services meanwhile: unless
# the machine has a policy of its own, one that says no is in place for the time of the installation.
install_missing() {
        local missing policy=/usr/sbin/policy-rc.d policy_is_ours=0 status=0
        mapfile -t missing < <(missing_packages "$@")
        if [[ ${#missing[@]} == 0 ]]; then return 0; fi
        if ! command -v apt-get >/dev/null; then
                echo "missing packages (by their Debian names): ${missing[*]}" >&2
                return 1
        fi
        if [[ $(id -u) != 0 ]]; then
                echo "missing packages; as root: apt-get install --no-install-recommends ${missing[*]}" >&2
                return 1
        fi
        echo "installing: ${missing[*]}"
        if [[ ! -e $policy ]]; then
                printf '#!/bin/sh\nexit 101\n' >"$policy"
                chmod 755 "$policy"
                policy_is_ours=1
                trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        fi
        export DEBIAN_FRONTEND=noninteractive
        local apt=(apt-get -y -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
        { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${missing[@]}"; } </dev/null || status=1
        if [[ $policy_is_ours == 1 ]]; then
                rm -f "$policy"
                trap - EXIT
        fi
        return $status
}
