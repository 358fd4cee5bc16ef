# Prometheus alerts of a node, as data; Prometheus reads JSON where it wants YAML. Pure builtins.
let
  alert = name: expression: duration: severity: summary: {
    alert = name;
    expr = expression;
    "for" = duration;
    labels = { inherit severity; };
    annotations = { inherit summary; };
  };
in
{
  groups = [
    {
      name = "fabstir-node";
      rules = [
        (alert "FabstirNodeDown" "up{job=\"fabstir-node\"} == 0" "5m" "critical"
          "{{ $labels.instance }} does not answer"
        )
        (alert "FabstirProcessNotReady" "fabstir_node_process_ready == 0" "5m" "critical"
          "{{ $labels.process }} is not ready; see fabstir-node status"
        )
        (alert "FabstirProcessRestarts" "increase(fabstir_watchdog_exits_total[1h]) > 3" "0m" "warning"
          "{{ $labels.process }} ended again and again; see its log"
        )
        (alert "FabstirGasLow" "{__name__=~\"fabstir_chain(_[a-z0-9]+)?_gas_claims_left\"} < 50" "10m"
          "critical"
          "the native coin pays for {{ $value }} more claims; send some to the host account"
        )
        (alert "FabstirListingInactive" "{__name__=~\"fabstir_chain(_[a-z0-9]+)?_listing_active\"} == 0"
          "15m"
          "warning"
          "the host is not registered or not active; see fabstir-node host status"
        )
        (alert "FabstirEndpointsDown"
          "{__name__=~\"fabstir_chain(_[a-z0-9]+)?_rpc_endpoints_usable\"} == 0"
          "5m"
          "critical"
          "no endpoint of the chain answers"
        )
        (alert "FabstirBackupFails" "increase(fabstir_updater_backups_total{outcome=\"failed\"}[1h]) > 2"
          "0m"
          "critical"
          "backups fail; see fabstir-node status"
        )
        (alert "FabstirAuditLogFails" "{__name__=~\"fabstir_[a-z0-9_]+_audit_failing\"} == 1" "5m" "warning"
          "a process cannot write its audit log; see fabstir-node status"
        )
        (alert "FabstirGpuThrottled" "fabstir_inference_gpu_speed_ratio < 0.5" "10m" "warning"
          "GPU {{ $labels.gpu }} runs below half of its speed or is in quarantine"
        )
      ];
    }
  ];
}
