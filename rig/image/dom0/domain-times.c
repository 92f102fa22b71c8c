/* domain-times: prints "DOMID NANOSECONDS" for each domain: the processor time that it has used, as the hypervisor counts it. */
#include <inttypes.h>
#include <stdio.h>
#include <xenctrl.h>

int main(void)
{
    xc_domaininfo_t domains[64];
    xc_interface *xen = xc_interface_open(NULL, NULL, 0);
    int count = xen ? xc_domain_getinfolist(xen, 0, 64, domains) : -1;

    if (count < 0) {
        perror("domain-times");
        return 1;
    }
    for (int i = 0; i < count; i++) {
        printf("%u %" PRIu64 "\n", (unsigned)domains[i].domain, domains[i].cpu_time);
    }
    return 0;
}
