# The supervisor's configuration as the appliance's node renders it at its start, to be looked at.
{ pkgs, node }:
pkgs.runCommand "fabstir-node-supervisord.conf" {
  inherit node;
  root = "${node}/${node.root}";
} "(source ${./supervisord-conf.sh})"
