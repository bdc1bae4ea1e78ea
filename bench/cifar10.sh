#!/bin/sh
# The paper's experiment on real CIFAR-10, into bench/results/cifar10-*.json; figures stay in $WORK. Hours on two cores.
#
#   bench/cifar10.sh DATA
#
# DATA holds test-first500-jpeg.tar (500 test images a class, a folder a class) and resnet20.safetensors and
# resnet56.safetensors, weights of He et al.'s networks for CIFAR-10 (bench/nets.py). The rivals need foolbox, and
# torchattacks and adv-lib, which ask for torchvision.
set -e
data=${1:?where the images and weights are}
here=$(dirname "$0")
work=${WORK:-$(mktemp -d)}
sdsgsm=${SDSGSM:-sdsgsm}

compare() { # name, model, options
    name=$1 model=$2
    shift 2
    "$sdsgsm" compare --model "$here/nets.py:$model" --weights "$data/$model.safetensors" \
        --data "$data/test-first500-jpeg.tar" --out "$work/$name" "$@"
    cp "$work/$name/table.json" "$here/results/cifar10-$name.json"
}

for model in resnet20 resnet56; do
    compare "$model" "$model" --limit "${OWN:-5000}" --curve ""
    compare "$model-rivals" "$model" --limit 500 --rival all --rival-limit 500 --curve "1,2,4"
done
