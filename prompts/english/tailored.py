"""Contexts that suit hardly anything but one kind of subject (Contextualizer, Sec. 5.3)."""

from __future__ import annotations

from prompts.english.contexts import lines
from prompts.english.senses import Sense

TAILORED: dict[Sense, tuple[str, ...]] = {
    "animal": lines("""
        a man petting {x}
        a girl hugging {x}
        {x} wagging its tail
        {x} licking its paw
        {x} eating from a food bowl
        {x} on a leash
        a vet vaccinating {x}
        a woman brushing the fur of {x}
        {x} asleep in its basket
        {x} with its tongue out
        a farmer calling {x}
        {x} feeding its young
        {x} growling at a stranger
        {x} chewing a bone
        children playing fetch with {x}
        {x} scratching behind its ear
        {x} sniffing the grass
        {x} rubbing against a leg
    """),
    "person": lines("""
        {x} shaking hands with a colleague
        {x} brushing teeth
        {x} telling a story to children
        {x} signing a contract
        {x} singing into a microphone
        {x} typing on a laptop
        {x} hugging a friend
        {x} voting at a ballot box
        {x} giving a speech
        {x} drinking coffee
        {x} reading the newspaper
        {x} putting on a coat
        a hairdresser cutting the hair of {x}
        a doctor talking to {x}
        {x} proposing on one knee
        {x} winning a marathon
        {x} crying at the cinema
    """),
    "vehicle": lines("""
        a mechanic repairing {x}
        a driver getting into {x}
        {x} stuck in a traffic jam
        {x} refuelled at a station
        {x} overtaking a lorry
        passengers waiting for {x}
        {x} with its lights on
        {x} crossing a bridge at full speed
        a boy washing {x} with a sponge
        {x} parked at the kerb
        {x} with a flat tyre
        {x} leaving a trail of dust
        {x} on the starting line of a race
        a policeman stopping {x}
        tourists boarding {x}
    """),
    "clothing": lines("""
        a man wearing {x}
        a woman trying on {x} in a fitting room
        {x} on a coat hanger
        {x} folded in a drawer
        a tailor mending {x}
        {x} on a shop mannequin
        a model presenting {x} on the catwalk
        {x} drying on a clothes line
        {x} in a shop window
        a child dressed in {x}
        {x} on the arm of a chair
        a customer paying for {x}
        {x} with the price tag still on
        a dancer taking off {x}
        {x} packed in a suitcase
    """),
    "vessel": lines("""
        a man drinking from {x}
        a woman filling {x} with water
        {x} full of hot tea
        {x} drying beside the sink
        a waiter bringing {x}
        {x} with a spoon in it
        a potter glazing {x}
        {x} boiling over
        {x} half empty
        {x} on a saucer
        a girl washing {x}
        {x} spilling milk
        {x} at the breakfast table
        {x} with a handwritten label
        a guest raising {x} for a toast
    """),
    "food": lines("""
        a boy biting into {x}
        a chef preparing {x}
        {x} fresh from the oven
        {x} on a dinner plate
        a baker decorating {x}
        {x} cut into slices
        {x} with a fork beside it
        a woman tasting {x}
        {x} wrapped in paper to take away
        {x} on a restaurant menu
        {x} served with cream
        a cook seasoning {x}
        {x} in a lunch box
        {x} half eaten
        ants crawling over {x}
    """),
    "plant": lines("""
        a gardener watering {x}
        a bee landing on {x}
        {x} growing through a crack
        {x} in full bloom
        {x} wilting in a pot
        a girl picking {x}
        {x} bending in the wind
        a florist arranging {x}
        {x} with dew on every leaf
        {x} pushing up through the soil
        a snail climbing {x}
        {x} with bare roots
        a botanist drawing {x}
        {x} casting shade
        {x} losing its leaves
    """),
    "bag": lines("""
        a student carrying {x} to school
        {x} full of clothes
        {x} on a luggage rack
        a traveller opening {x}
        {x} with a broken zip
        a customs officer searching {x}
        {x} forgotten on a train seat
        {x} hanging from a hook
        a hiker packing {x}
        {x} with souvenirs inside
        a mother filling {x} with groceries
        {x} locked with a key
        {x} left at the lost property office
        a thief grabbing {x}
        {x} slung over a shoulder
    """),
    "thing": lines("""
        a boy playing with {x}
        a woman buying {x}
        a man unpacking {x}
        {x} on a shop counter
        {x} on a bedside table
        a grandmother dusting {x}
        {x} as a birthday present
        a collector examining {x}
        {x} in the hands of a child
        {x} with an owner's name on it
        a factory worker assembling {x}
        {x} in its original box
        a girl showing {x} to a friend
        an auctioneer presenting {x}
        {x} on a high shelf
        a craftsman finishing {x}
        a thief running off with {x}
    """),
}
